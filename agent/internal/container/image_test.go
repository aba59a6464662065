package container_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// startRegistry runs a real registry, and returns its address and what stops it.
func startRegistry(t *testing.T) (string, func()) {
	t.Helper()
	binary := filepath.Join("..", "..", "..", ".cache", "bin", "registry")
	if _, err := os.Stat(binary); err != nil {
		if binary, err = exec.LookPath("registry"); err != nil {
			t.Skip("no registry in .cache/bin or PATH: pulls and digests were not tested")
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	config := filepath.Join(t.TempDir(), "config.yml")
	text := "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: " + t.TempDir() + "}}\nhttp: {addr: '" + address + "'}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = cmd.Process.Kill() // it may have been stopped before.
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	for range 100 {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return address, stop
		}
		pause(50 * time.Millisecond)
	}
	t.Fatal("the registry did not start")
	return "", nil
}

// push gives the test image to the registry, and removes what the engine learned by that.
func push(t *testing.T, e *testEngine, name string) {
	t.Helper()
	ctx := t.Context()
	if err := e.docker.ImageTag(ctx, testImage, name); err != nil {
		t.Fatal(err)
	}
	out, err := e.docker.ImagePush(ctx, name, dockerimage.PushOptions{RegistryAuth: "e30="})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	answer, err := io.ReadAll(out)
	if err != nil || strings.Contains(string(answer), "errorDetail") {
		t.Fatalf("push: %v %s", err, answer)
	}
}

func TestImages(t *testing.T) {
	h := newHost(t, container.Policy{})
	ctx := t.Context()
	address, stop := startRegistry(t)
	name := address + "/team/server:1"
	push(t, h.lab, name)

	got, err := h.ResolveImage(ctx, name)
	if err != nil || !strings.HasPrefix(got.GetPinned(), address+"/team/server@sha256:") || got.GetLocal() || !got.GetPresent() {
		t.Fatalf("pushed image: got %v, %v", got, err)
	}
	pinned := got.GetPinned()
	if again, err := h.ResolveImage(ctx, pinned); err != nil || again.GetPinned() != pinned || !again.GetPresent() {
		t.Errorf("pinned image: got %v, %v", again, err)
	}
	if pulled, err := h.Pull(ctx, pinned); err != nil || pulled {
		t.Errorf("pull of what is here: got %t, %v", pulled, err)
	}

	// As another host sees it: nothing of it is here.
	for _, ref := range []string{name, pinned} {
		if _, err := h.lab.docker.ImageRemove(ctx, ref, dockerimage.RemoveOptions{}); err != nil {
			t.Logf("remove %s: %v", ref, err)
		}
	}
	if got, err = h.ResolveImage(ctx, name); err != nil || got.GetPinned() != pinned || got.GetPresent() {
		t.Errorf("image of the registry only: got %v, %v; want %s, not present", got, err, pinned)
	}
	if pulled, err := h.Pull(ctx, pinned); err != nil || !pulled {
		t.Errorf("pull: got %t, %v; want it fetched", pulled, err)
	}

	_, err = h.ResolveImage(ctx, address+"/team/none:1")
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, "/team/none:1")
	_, err = h.Pull(ctx, address+"/team/none@sha256:"+strings.Repeat("0", 64))
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, "/team/none@")

	stop()
	began := time.Now()
	if got, err = h.ResolveImage(ctx, pinned); err != nil || got.GetPinned() != pinned {
		t.Errorf("registry away, image here: got %v, %v", got, err)
	}
	_, err = h.ResolveImage(ctx, address+"/team/other:1")
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, false, "/team/other:1")
	_, err = h.Pull(ctx, address+"/team/other:1")
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_PULL, false, "/team/other:1")
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("an unreachable registry held the questions for %s", took)
	}
}

func TestImageThatNoRegistryHas(t *testing.T) {
	h := newHost(t, container.Policy{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	began := time.Now()
	got, err := h.ResolveImage(ctx, testImage)
	if err != nil || !strings.Contains(got.GetPinned(), "sha256:") || !got.GetPresent() {
		t.Fatalf("got %v, %v; want a local image", got, err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s, want no wait for a registry", took)
	}
	id := inspectID(t, h.lab, testImage)
	if got, err = h.ResolveImage(ctx, id); err != nil || got.GetPinned() != id || !got.GetLocal() {
		t.Errorf("by id: got %v, %v; want %s, local", got, err, id)
	}
	if pulled, err := h.Pull(ctx, id); err != nil || pulled {
		t.Errorf("pull by id: got %t, %v; want nothing done", pulled, err)
	}
	none := "sha256:" + strings.Repeat("1", 64)
	_, err = h.ResolveImage(ctx, none)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, none)
	_, err = h.Pull(ctx, none)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, none)
	_, err = h.ResolveImage(ctx, "no-such-image-anywhere:7")
	f := wantFailureReason(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND)
	if !strings.Contains(f.GetMessage(), "no-such-image-anywhere:7") {
		t.Errorf("got %q, want the image named", f.GetMessage())
	}
	_, err = h.ResolveImage(ctx, "Not A Reference")
	wantFailure(t, err, invalid, true, "Not A Reference")
	spec := server(t, h)
	spec.Image = none
	_, err = h.Create(ctx, "run/step/1", spec)
	wantFailure(t, err, agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, none)
}

func inspectID(t *testing.T, e *testEngine, name string) string {
	t.Helper()
	found, err := e.docker.ImageInspect(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return found.ID
}

func TestRegistryAuth(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	helper := "#!/bin/sh\nread host\n[ \"$host\" = r.example.org ] && echo '{\"Username\":\"eve\",\"Secret\":\"pw\"}' || { echo 'credentials not found in native keychain'; exit 1; }\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, config, image, user string }{
		{"no file", "", "r.example.org/a", ""},
		{"login", `{"auths":{"r.example.org":{"auth":"Ym9iOnNlY3JldA=="}}}`, "r.example.org/a", "bob"},
		{"login at the hub", `{"auths":{"https://index.docker.io/v1/":{"auth":"Ym9iOnNlY3JldA=="}}}`, "nginx", "bob"},
		{"another registry", `{"auths":{"r.example.org":{"auth":"Ym9iOnNlY3JldA=="}}}`, "s.example.org/a", ""},
		{"helper", `{"credHelpers":{"r.example.org":"test"}}`, "r.example.org/a", "eve"},
		{"store without an entry", `{"credsStore":"test"}`, "s.example.org/a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "config.json")
			os.Remove(path)
			if tt.config != "" {
				if err := os.WriteFile(path, []byte(tt.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			named, err := reference.ParseDockerRef(tt.image)
			if err != nil {
				t.Fatal(err)
			}
			got, err := container.RegistryAuth(named)
			if err != nil {
				t.Fatal(err)
			}
			if tt.user == "" {
				if got != "" {
					t.Errorf("got credentials %q, want none", got)
				}
				return
			}
			auth, err := registry.DecodeAuthConfig(got)
			if err != nil || auth.Username != tt.user {
				t.Errorf("got %+v, %v; want %s", auth, err, tt.user)
			}
		})
	}
}
