package container

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// TestNotSent: a request that an engine may have read is never taken for one that it did not get.
func TestNotSent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	docker, err := client.NewClientWithOpts(client.WithHost("unix://"+path), client.WithVersion("1.41"))
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	start := func() error { return docker.ContainerStart(t.Context(), "job", container.StartOptions{}) }
	if err := start(); !notSent(err) {
		t.Errorf("got false for %v, want nobody to have got it", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan int, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			read <- 0
			return
		}
		n, _ := conn.Read(make([]byte, 4096))
		_ = conn.Close()
		read <- n
	}()
	if err := start(); err == nil || notSent(err) {
		t.Errorf("got true for %v, although the request was read", err)
	}
	if n := <-read; n == 0 {
		t.Error("nothing was read: the test shows nothing")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := start(); !notSent(err) {
		t.Errorf("got false for %v, want nobody to have got it", err)
	}
}
