package container_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dockercontainer "github.com/docker/docker/api/types/container"
	dockerimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"

	"github.com/spheroseg/muster/agent/internal/container"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	hostEnv   = "MUSTER_TEST_DOCKER_HOST" // an engine to use instead of a private one.
	insideEnv = "MUSTER_TEST_NETNS"       // set in the child that has a network namespace of its own.
	testImage = "muster-test-server:1"
)

// lab is the engine that the tests of this package share.
var lab = &testEngine{}

// TestMain runs the tests in a network namespace of their own where they may start an engine, so that neither its bridge nor its
// firewall rules meet those of the machine.
func TestMain(m *testing.M) {
	if os.Getenv(hostEnv) == "" && os.Getenv(insideEnv) == "" && os.Geteuid() == 0 && haveEngine() == "" {
		os.Exit(rerun())
	}
	if os.Getenv(insideEnv) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			os.Exit(1)
		}
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, "subreaper:", err)
			os.Exit(1)
		}
	}
	code := m.Run()
	lab.stop()
	os.Exit(code)
}

func rerun() int {
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "network namespace for the tests:", err)
		return 1
	}
	return 0
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// haveEngine says what is missing to start an engine; "" if nothing is.
func haveEngine() string {
	for _, program := range []string{"dockerd", "containerd", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is not installed"
		}
	}
	return ""
}

// testEngine is a private dockerd, or the one that the environment names.
type testEngine struct {
	mu     sync.Mutex
	host   string
	dir    string
	daemon *exec.Cmd
	docker *client.Client
	failed error
}

// need returns the engine, with the test image, and skips the test if there can be none.
func (e *testEngine) need(t *testing.T) *testEngine {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.docker != nil {
		return e
	}
	if e.failed != nil {
		t.Fatal(e.failed)
	}
	e.host = os.Getenv(hostEnv)
	if e.host == "" {
		if os.Geteuid() != 0 {
			t.Skipf("not root and no %s: nothing was tested on a real engine", hostEnv)
		}
		if missing := haveEngine(); missing != "" {
			t.Skipf("%s and no %s: nothing was tested on a real engine", missing, hostEnv)
		}
	}
	if e.failed = e.open(); e.failed != nil {
		t.Fatal(e.failed)
	}
	return e
}

func (e *testEngine) open() error {
	if e.host == "" {
		dir, err := os.MkdirTemp("", "muster-engine-")
		if err != nil {
			return err
		}
		e.dir, e.host = dir, "unix://"+dir+"/docker.sock"
		if err := e.start(); err != nil {
			return err
		}
	}
	docker, err := client.NewClientWithOpts(client.WithHost(e.host), client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	if err := importImage(docker); err != nil {
		return err
	}
	e.docker = docker
	return nil
}

// start starts the daemon and waits until it answers.
func (e *testEngine) start() error {
	if err := e.launch(); err != nil {
		return err
	}
	docker, err := client.NewClientWithOpts(client.WithHost(e.host), client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	defer docker.Close()
	for range 600 {
		if _, err = docker.Ping(context.Background()); err == nil {
			return nil
		}
		pause(50 * time.Millisecond)
	}
	log, _ := os.ReadFile(filepath.Join(e.dir, "dockerd.log"))
	return fmt.Errorf("dockerd did not start: %w\n%s", err, log)
}

func (e *testEngine) launch() error {
	log, err := os.OpenFile(filepath.Join(e.dir, "dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	e.daemon = exec.Command("dockerd", "--data-root", e.dir+"/data", "--exec-root", e.dir+"/exec", "--pidfile", e.dir+"/docker.pid", "-H", e.host,
		"--cgroup-parent", "/"+filepath.Base(e.dir), "--log-level", "warn")
	e.daemon.Stdout, e.daemon.Stderr = log, log
	// A test binary that is killed, as by its timeout, takes its daemon along.
	e.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return e.daemon.Start()
}

// kill ends the daemon as a crash would.
func (e *testEngine) kill(t *testing.T) {
	t.Helper()
	if e.daemon == nil {
		t.Skipf("%s is set: its daemon is not ours to kill", hostEnv)
	}
	pid, errPid := os.ReadFile(e.dir + "/exec/containerd/containerd.pid")
	if err := e.daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.daemon.Wait() // it was killed.
	// Its containerd dies with it. Where process 1 is no init, nobody would reap it, and the next daemon would take it for alive.
	if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); errPid == nil && err == nil {
		if _, err := syscall.Wait4(n, nil, 0, nil); err != nil {
			t.Fatalf("reap containerd: %v", err)
		}
	}
}

// relaunch starts the daemon again and does not wait for it.
func (e *testEngine) relaunch(t *testing.T) {
	t.Helper()
	if err := e.launch(); err != nil {
		t.Fatal(err)
	}
}

func (e *testEngine) stop() {
	if e.daemon == nil {
		return
	}
	_ = e.daemon.Process.Signal(syscall.SIGTERM)
	_ = e.daemon.Wait()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], e.dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	os.RemoveAll(e.dir)
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(e.dir))
	for _, g := range append(groups, "/sys/fs/cgroup/"+filepath.Base(e.dir)) {
		os.Remove(g)
	}
}

// importImage makes an image from scratch that holds the test server and nothing else.
func importImage(docker *client.Client) error {
	dir, err := os.MkdirTemp("", "muster-server-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir+"/server", "./testdata/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the test server: %w\n%s", err, out)
	}
	binary, err := os.ReadFile(dir + "/server")
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := tw.WriteHeader(&tar.Header{Name: "server", Mode: 0o755, Size: int64(len(binary))}); err != nil {
		return err
	}
	if _, err := tw.Write(binary); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	out, err := docker.ImageImport(context.Background(), dockerimage.ImportSource{Source: &layer, SourceName: "-"}, testImage,
		dockerimage.ImportOptions{Changes: []string{`ENTRYPOINT ["/server"]`}})
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(io.Discard, out)
	return err
}

// host is one agent's view of the engine.
type host struct {
	*container.Engine
	lab     *testEngine
	name    string
	secrets string
}

// newHost returns the engine as an agent of its own sees it, and removes all of its containers and networks at the end.
func newHost(t *testing.T, policy container.Policy) *host {
	t.Helper()
	e := lab.need(t)
	name := "h" + strconv.FormatInt(time.Now().UnixNano(), 36)
	secrets := filepath.Join(t.TempDir(), "secrets")
	engine, err := container.New(container.Options{
		DockerHost: e.host, HostName: name, Address: "127.0.0.1", SecretsDir: secrets, Policy: policy, Logger: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		all, err := engine.List(ctx, &agentv1.ListContainersRequest{})
		if err != nil {
			t.Error(err)
		}
		for _, c := range all {
			if _, err := engine.Stop(ctx, c.GetName(), time.Second); err != nil {
				t.Error(err)
			}
			if err := engine.Remove(ctx, "cleanup/remove/1", c.GetName(), false); err != nil {
				t.Error(err)
			}
		}
		engine.Close()
	})
	return &host{Engine: engine, lab: e, name: name, secrets: secrets}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func stopOptions(seconds int) dockercontainer.StopOptions {
	return dockercontainer.StopOptions{Timeout: &seconds}
}

// pause waits; the tests that use it wait for something outside of this process.
func pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}
