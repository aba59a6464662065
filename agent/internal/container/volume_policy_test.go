package container_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// TestPolicyForVolumes: the driver "local" mounts what its options say, and a relative device is one of the daemon's working directory.
func TestPolicyForVolumes(t *testing.T) {
	link := filepath.Join(t.TempDir(), "innocent")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	const (
		pass  = ""
		roots = "bind_roots"
		right = "allow_privileged"
		never = "no policy allows"
	)
	for _, tt := range []struct {
		driver, kind, o, device string
		want                    string
	}{
		{kind: "none", o: "bind", device: "/etc", want: roots},
		{kind: "none", o: "bind", device: "etc", want: roots},
		{driver: "local", kind: "none", o: "bind", device: "./etc", want: roots},
		{kind: "none", o: "bind", device: "../../etc/ssl", want: roots},
		{kind: "none", o: "bind", device: ".", want: roots},
		{kind: "none", o: "bind", device: "..", want: roots},
		{kind: "none", o: "rbind", device: "proc", want: roots},
		{kind: "none", o: "rw,rbind,nosuid", device: "etc", want: roots},
		{kind: "none", o: "rw, bind", device: "etc", want: roots},
		{kind: "none", device: "etc", want: roots},
		{o: "bind", device: "etc", want: roots},
		{kind: "none", o: "bind", device: link[1:] + "/passwd", want: roots},
		{kind: "none", o: "bind", device: "run/docker.sock", want: never},
		{kind: "none", o: "bind", device: "var/run/docker.sock", want: never},
		{kind: "none", o: "bind", device: "none/secrets", want: never},
		{kind: "none", o: "bind", device: "srv/data", want: pass},
		{kind: "none", o: "bind", device: "/srv/data", want: pass},
		// With bind, mount(2) does not look at the type.
		{kind: "nfs", o: "addr=10.0.0.1,bind", device: "etc", want: roots},
		{kind: "tmpfs", o: "bind", device: "/etc", want: roots},
		{kind: "overlay", o: "rbind", device: "run/docker.sock", want: never},
		// A disk's device is a path too.
		{kind: "ext4", device: "/dev/sda1", want: roots},
		{kind: "ext4", device: "dev/sda1", want: roots},
		{kind: "squashfs", o: "loop", device: "srv/image.squashfs", want: pass},
		// What leads to the host without naming a path, or is not known.
		{kind: "proc", device: "proc", want: right},
		{kind: "devtmpfs", device: "devtmpfs", want: right},
		{kind: "overlay", o: "lowerdir=/etc:/srv", device: "overlay", want: right},
		{kind: "NONE", o: "", device: "etc", want: right},
		{kind: "tmpfs", o: "size=64m", device: "tmpfs", want: pass},
		{kind: "nfs", o: "addr=10.0.0.1,rw", device: ":/export", want: pass},
		{kind: "nfs4", o: "addr=10.0.0.1", device: "/export", want: pass},
		{kind: "cifs", o: "addr=nas,username=u", device: "//nas/etc", want: pass},
		// Another driver has its own words.
		{driver: "rexray", kind: "anything", device: "disk-1", want: pass},
		{driver: "rexray", device: "/etc", want: roots},
	} {
		t.Run(fmt.Sprintf("%s %s %s %s", tt.driver, tt.kind, tt.o, tt.device), func(t *testing.T) {
			options := map[string]string{"device": tt.device}
			for key, value := range map[string]string{"type": tt.kind, "o": tt.o} {
				if value != "" {
					options[key] = value
				}
			}
			spec := &agentv1.ContainerSpec{Name: "a.b.1.r1", Image: "repo/app", Mounts: []*agentv1.Mount{{
				Type: "volume", Source: "v", Target: "/x", VolumeDriver: tt.driver, VolumeOptions: options,
			}}}
			err := container.Policy{}.Admit(spec, "/run/docker.sock", "/none/secrets")
			all := container.Policy{AllowPrivileged: true, BindRoots: []string{"/"}}.Admit(spec, "/run/docker.sock", "/none/secrets")
			switch refused := agentv1.FailureReason_FAILURE_REASON_REFUSED; tt.want {
			case pass:
				if err != nil {
					t.Errorf("got %v, want it to pass", err)
				}
			case never:
				wantFailure(t, err, refused, true, never)
				wantFailure(t, all, refused, true, never)
			default:
				wantFailure(t, err, refused, true, "a.b.1.r1", " "+tt.want+": ")
				if all != nil {
					t.Errorf("allowed: got %v, want it to pass", all)
				}
			}
		})
	}
	plain := &agentv1.ContainerSpec{Name: "a.b.1.r1", Image: "repo/app", Mounts: []*agentv1.Mount{
		{Type: "volume", Source: "v", Target: "/x"}, {Type: "volume", Source: "w", Target: "/y", VolumeOptions: map[string]string{"size": "1g"}}, {Type: "tmpfs", Target: "/z"},
	}}
	if err := (container.Policy{}).Admit(plain, "/run/docker.sock", "/none/secrets"); err != nil {
		t.Errorf("got %v, want ordinary volumes to pass", err)
	}
}
