package container_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

func TestLoadPolicy(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		uid        int
		wantErr    string
		check      func(container.Policy) bool
	}{
		{name: "all keys", mode: 0o644, text: "allow_privileged: true\nallow_host_namespaces: true\nbind_roots: [/etc/localtime]\nbind_roots_only: true\n" +
			"allow_capabilities: [SYS_TIME]\nallow_devices: [/dev/fuse]\nallow_images: ['registry.example.org/*']\n",
			check: func(p container.Policy) bool {
				return p.AllowPrivileged && p.AllowHostNamespaces && p.BindRootsOnly && p.BindRoots[0] == "/etc/localtime" && p.AllowImages[0] == "registry.example.org/*"
			}},
		{name: "empty", mode: 0o600, check: func(p container.Policy) bool { return !p.AllowPrivileged }},
		{name: "unknown key", mode: 0o644, text: "allow_everything: true\n", wantErr: "allow_everything"},
		{name: "relative root", mode: 0o644, text: "bind_roots: [etc]\n", wantErr: "absolute"},
		{name: "writable by others", mode: 0o666, text: "allow_privileged: true\n", wantErr: "chmod 0644"},
		{name: "of another user", mode: 0o644, uid: 1234, text: "allow_privileged: true\n", wantErr: "must belong to root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "policy.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			if tt.uid != 0 {
				if os.Geteuid() != 0 {
					t.Skip("not root: a file of another user cannot be made")
				}
				if err := os.Chown(path, tt.uid, -1); err != nil {
					t.Fatal(err)
				}
			}
			p, err := container.LoadPolicy(path)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, want an error with %q", err, tt.wantErr)
				}
				return
			}
			if err != nil || !tt.check(p) {
				t.Errorf("got %+v, %v", p, err)
			}
		})
	}
	if p, err := container.LoadPolicy(filepath.Join(t.TempDir(), "none")); err != nil || p.AllowPrivileged {
		t.Errorf("missing file: got %+v, %v; want the zero policy", p, err)
	}
}

func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "innocent")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	bind := func(source string) *agentv1.ContainerSpec {
		return &agentv1.ContainerSpec{Mounts: []*agentv1.Mount{{Type: "bind", Source: source, Target: "/x"}}}
	}
	for _, tt := range []struct {
		name  string
		spec  *agentv1.ContainerSpec
		allow container.Policy // under which it passes; the zero Policy if it always does.
		key   string           // named by the refusal; "" if it always passes.
		never bool             // whatever the policy.
	}{
		{name: "plain", spec: &agentv1.ContainerSpec{CapAdd: []string{"NET_BIND_SERVICE", "cap_chown"}, SecurityOpt: []string{"no-new-privileges:true"}}},
		{name: "bind of a folder of its own", spec: bind(filepath.Join(dir, "data"))},
		{name: "privileged", spec: &agentv1.ContainerSpec{Privileged: true}, key: "allow_privileged", allow: container.Policy{AllowPrivileged: true}},
		{name: "host pid", spec: &agentv1.ContainerSpec{PidMode: "host"}, key: "allow_host_namespaces", allow: container.Policy{AllowHostNamespaces: true}},
		{name: "host ipc", spec: &agentv1.ContainerSpec{IpcMode: "host"}, key: "allow_host_namespaces", allow: container.Policy{AllowHostNamespaces: true}},
		{name: "host network", spec: &agentv1.ContainerSpec{NetworkMode: "host"}, key: "allow_host_namespaces", allow: container.Policy{AllowHostNamespaces: true}},
		{name: "capability", spec: &agentv1.ContainerSpec{CapAdd: []string{"CAP_SYS_ADMIN"}}, key: "allow_capabilities", allow: container.Policy{AllowCapabilities: []string{"sys_admin"}}},
		{name: "all capabilities", spec: &agentv1.ContainerSpec{CapAdd: []string{"ALL"}}, key: "allow_capabilities", allow: container.Policy{AllowCapabilities: []string{"ALL"}}},
		{name: "no seccomp", spec: &agentv1.ContainerSpec{SecurityOpt: []string{"seccomp:unconfined"}}, key: "allow_privileged", allow: container.Policy{AllowPrivileged: true}},
		{name: "no apparmor", spec: &agentv1.ContainerSpec{SecurityOpt: []string{"apparmor=unconfined"}}, key: "allow_privileged", allow: container.Policy{AllowPrivileged: true}},
		{name: "device", spec: &agentv1.ContainerSpec{Devices: []string{"/dev/fuse:/dev/fuse:rw"}}, key: "allow_devices", allow: container.Policy{AllowDevices: []string{"/dev/fuse"}}},
		{name: "root", spec: bind("/"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/"}}},
		{name: "etc", spec: bind("/etc/ssl"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/etc/ssl"}}},
		{name: "proc", spec: bind("/proc"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/proc"}}},
		{name: "a parent of the secrets", spec: bind(dir), key: "bind_roots", allow: container.Policy{BindRoots: []string{dir}}},
		{name: "a parent of what is protected", spec: bind("/var/lib"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/var/lib"}}},
		{name: "a way out and in again", spec: bind("/srv/../etc/passwd"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/etc"}}},
		{name: "a link to etc", spec: bind(link + "/passwd"), key: "bind_roots", allow: container.Policy{BindRoots: []string{"/etc"}}},
		{name: "a volume that is a bind", spec: &agentv1.ContainerSpec{Mounts: []*agentv1.Mount{{
			Type: "volume", Source: "v", Target: "/x", VolumeOptions: map[string]string{"type": "none", "o": "bind", "device": "/etc"},
		}}}, key: "bind_roots", allow: container.Policy{BindRoots: []string{"/etc"}}},
		{name: "a volume of a network", spec: &agentv1.ContainerSpec{Mounts: []*agentv1.Mount{{
			Type: "volume", Source: "v", Target: "/x", VolumeOptions: map[string]string{"type": "nfs", "o": "addr=10.0.0.1", "device": ":/export"},
		}}}},
		{name: "the engine's socket", spec: bind("/var/run/docker.sock"), never: true, allow: container.Policy{AllowPrivileged: true, BindRoots: []string{"/"}}},
		{name: "secrets of others", spec: bind(filepath.Join(dir, "secrets", "other", "0")), never: true, allow: container.Policy{BindRoots: []string{"/"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.Name, tt.spec.Image = "a.b.1.r1", "repo/app"
			check := func(p container.Policy) error {
				return p.Admit(tt.spec, "/run/docker.sock", filepath.Join(dir, "secrets"))
			}
			err := check(container.Policy{})
			switch {
			case tt.never:
				wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_REFUSED, true, "no policy allows")
				wantFailure(t, check(tt.allow), agentv1.FailureReason_FAILURE_REASON_REFUSED, true, "no policy allows")
			case tt.key == "" && err != nil:
				t.Errorf("got %v, want it to pass", err)
			case tt.key != "":
				wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_REFUSED, true, "a.b.1.r1", " "+tt.key+": ")
				if err := check(tt.allow); err != nil {
					t.Errorf("allowed: got %v, want it to pass", err)
				}
			}
		})
	}
}

func TestPolicyForImagesAndRoots(t *testing.T) {
	p := container.Policy{AllowImages: []string{"registry.example.org/team/*", "nginx"}, BindRoots: []string{"/srv"}, BindRootsOnly: true}
	for image, ok := range map[string]bool{
		"registry.example.org/team/app@sha256:" + strings.Repeat("a", 64): true,
		"nginx:1.27":                        true,
		"evil/nginx":                        false,
		"registry.example.org/other":        false,
		"sha256:" + strings.Repeat("a", 64): false,
	} {
		err := p.Admit(&agentv1.ContainerSpec{Name: "a.b", Image: image}, "", "/none")
		if (err == nil) != ok {
			t.Errorf("image %s: got %v, want pass=%t", image, err, ok)
		}
	}
	for source, ok := range map[string]bool{"/srv": true, "/srv/data": true, "/srvdata": false, "/home": false} {
		err := p.Admit(&agentv1.ContainerSpec{Name: "a.b", Image: "nginx", Mounts: []*agentv1.Mount{{Type: "bind", Source: source, Target: "/x"}}}, "", "/none")
		if (err == nil) != ok {
			t.Errorf("bind of %s: got %v, want pass=%t", source, err, ok)
		}
	}
}
