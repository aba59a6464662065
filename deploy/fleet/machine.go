package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initScript is process 1 of a machine. Its mounts are private; /run is its own, and what it changes in /etc and /var/lib nobody else sees. It reaps
// orphans while it waits. With a pipe as its standard input it ends when the fleet's process does, and the kernel ends everything else on the machine
// with it.
const initScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
for dir in /etc /var/lib; do
	mkdir -p /run/over$dir/upper /run/over$dir/work
	mount -t overlay -o lowerdir=$dir,upperdir=/run/over$dir/upper,workdir=/run/over$dir/work overlay $dir
done
hostname "$1"
ip link set lo up
echo up
exec >/dev/null 3<&0
if [ "$2" = keep ]; then sleep infinity & else cat <&3 & fi
wait $!`

// namespaces is a set of the kinds that a machine has.
type namespaces int

const (
	netNamespace  namespaces = unix.CLONE_NEWNET
	allNamespaces namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWNS
)

// Machine is a set of namespaces with a network interface: what runs on it sees its own network, host name, processes and mounts. It can be cut off and
// killed as a whole.
type Machine struct {
	// Name of the machine and its host name.
	Name string
	// Address of the machine on the fleet's network.
	Address string

	f       *Fleet
	port    string // of the switch; empty for the switch itself
	holder  *Process
	pipe    io.Closer
	refused [][]string // rules that drop packets, without the command
}

// newMachine boots a machine that is not linked to anything yet.
func (f *Fleet) newMachine(ctx context.Context, name string) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("fleet: machines need root: run this as root")
	}
	m := &Machine{Name: name, f: f}
	if err := m.boot(ctx); err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	f.OnClose("machine "+name, func(context.Context) error { return m.Kill() })
	return m, nil
}

func (m *Machine) boot(ctx context.Context) error {
	dir, err := m.f.path("machine-" + m.Name)
	if err != nil {
		return err
	}
	if err := m.f.state.change(func(r *record) { r.Cgroups = append(r.Cgroups, m.cgroup()) }); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "machine.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	mode := "bound"
	if m.f.opts.Keep {
		mode = "keep"
	}
	cmd := exec.Command("/bin/sh", "-c", initScript, "init", m.Name, mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(allNamespaces)}
	cmd.Stderr = log
	stdin, stdinWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), stdinWriter.Close())
	}
	cmd.Stdin, cmd.Stdout = stdin, stdoutWriter
	err = spawn(cmd, nil)
	_, _ = stdin.Close(), stdoutWriter.Close()
	defer func() { _ = stdout.Close() }()
	if err != nil {
		return errors.Join(err, stdinWriter.Close())
	}
	m.pipe = stdinWriter
	m.holder = &Process{f: m.f, spec: Command{Name: "machine-" + m.Name}, log: log.Name()}
	if err := m.holder.follow(cmd); err != nil {
		return err
	}
	return m.up(ctx, stdout)
}

// up waits for the word of process 1.
func (m *Machine) up(ctx context.Context, stdout *os.File) error {
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	deadline, _ := limit.Deadline()
	if err := stdout.SetReadDeadline(deadline); err != nil {
		return err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil && strings.TrimSpace(line) == "up" {
		return nil
	}
	if kerr := m.Kill(); kerr != nil {
		return kerr
	}
	return fmt.Errorf("it did not come up (%w): %w", err, m.holder.failed())
}

// cgroup is the parent of the machine's containers.
func (m *Machine) cgroup() string { return fmt.Sprintf("%s%d-%s", folderPrefix, m.f.number, m.Name) }

// Kill ends everything on the machine at once, as a power cut does. Its disk stays.
func (m *Machine) Kill() error {
	if m.holder == nil {
		return nil
	}
	return errors.Join(m.pipe.Close(), m.holder.Kill())
}

// enter calls do on a thread that is in the machine's namespaces: what do starts is on the machine.
func (m *Machine) enter(kinds namespaces, do func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread has left the process's namespaces for good and ends with this goroutine.
		runtime.LockOSThread()
		if err := m.join(kinds); err != nil {
			result <- fmt.Errorf("enter machine %s: %w", m.Name, err)
			return
		}
		result <- do()
	}()
	return <-result
}

func (m *Machine) join(kinds namespaces) error {
	// A thread that shares its working directory and root with others cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	all := []struct {
		file string
		kind namespaces
	}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}
	for _, ns := range all { // the mounts last: they change what /proc shows
		if kinds&ns.kind == 0 {
			continue
		}
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", m.holder.PID(), ns.file))
		if err != nil {
			return err
		}
		err = unix.Setns(int(file.Fd()), int(ns.kind))
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("setns %s: %w", ns.file, err)
		}
	}
	return nil
}

// removeCgroup removes an empty group with everything below it, in every hierarchy.
func removeCgroup(ctx context.Context, group string) error {
	const root = "/sys/fs/cgroup"
	tops, err := filepath.Glob(filepath.Join(root, "*", group))
	if err != nil {
		return err
	}
	tops = append(tops, filepath.Join(root, group))
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	return Poll(ctx, 20*time.Millisecond, "cgroup "+group+" to be empty", func() (bool, error) {
		gone := true
		for _, top := range tops {
			gone = removeTree(top) && gone
		}
		return gone, nil
	})
}

// removeTree removes folders from the bottom up: the files of a cgroup cannot and need not be removed.
func removeTree(dir string) bool {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	err = os.Remove(dir)
	return err == nil || errors.Is(err, os.ErrNotExist)
}
