package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const stopLimit = 15 * time.Second // between SIGTERM and SIGKILL

// Command is a program to run. Path and Name are required.
type Command struct {
	// Name of the process in the fleet: its log is NAME/NAME.log in the run folder.
	Name string
	// Path of the program.
	Path string
	// Args without the program itself.
	Args []string
	// Env in addition to the fleet's own environment.
	Env []string
	// Stdin of a command that is run to its end.
	Stdin string
	// Machine that the program runs on; nil means the one that the fleet's own process runs on.
	Machine *Machine
}

// Process is a running program of the fleet.
type Process struct {
	f    *Fleet
	spec Command
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed after the process ended and err is set
	err  error
}

// Start runs a program until it is stopped, or the fleet is closed.
func (f *Fleet) Start(spec Command) (*Process, error) {
	dir, err := f.path(spec.Name)
	if err != nil {
		return nil, err
	}
	p := &Process{f: f, spec: spec, log: filepath.Join(dir, spec.Name+".log")}
	if err := p.start(); err != nil {
		return nil, err
	}
	if spec.Machine == nil {
		f.OnClose(spec.Name, p.Stop) // what is on a machine ends with the machine
	}
	return p, nil
}

func (p *Process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(p.spec.Path, p.spec.Args...)
	cmd.Env = append(os.Environ(), p.spec.Env...)
	cmd.Dir = filepath.Dir(p.log)
	cmd.Stdout, cmd.Stderr = log, log
	if err := spawn(cmd, p.spec.Machine); err != nil {
		return fmt.Errorf("start %s: %w", p.spec.Name, err)
	}
	return p.follow(cmd)
}

// spawn starts cmd on the machine, in a process group of its own: a ctrl-C on the terminal is for the fleet, which stops the rest in order.
func spawn(cmd *exec.Cmd, m *Machine) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if m == nil {
		return cmd.Start()
	}
	return m.enter(allNamespaces, cmd.Start)
}

// follow records a started process and waits for its end.
func (p *Process) follow(cmd *exec.Cmd) error {
	p.cmd, p.done, p.err = cmd, make(chan struct{}), nil
	err := p.f.state.addProcess(cmd.Process.Pid, p.spec.Name)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return err
}

// PID of the process, as the fleet's own process sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is the path of the file that takes its output.
func (p *Process) Log() string { return p.log }

// Alive says that the process has not ended.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Done is closed when the process ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	return errors.Join(p.Signal(syscall.SIGKILL), p.wait(killWait))
}

// Pause stops the process with SIGSTOP: it holds its connections and does nothing.
func (p *Process) Pause() error { return p.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Stop ends the process with SIGTERM, and with SIGKILL if that does not end it in time. A process that is gone is fine.
func (p *Process) Stop(ctx context.Context) error {
	if err := errors.Join(p.Signal(syscall.SIGCONT), p.Signal(syscall.SIGTERM)); err != nil {
		return err
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	case <-limit.C:
	}
	return errors.Join(fmt.Errorf("%s did not end after SIGTERM: see %s", p.spec.Name, p.log), p.Kill())
}

// Restart starts the program again with the same arguments, after it ended.
func (p *Process) Restart() error {
	if p.Alive() {
		return fmt.Errorf("restart %s: it runs", p.spec.Name)
	}
	return p.start()
}

// Signal sends a signal; a process that is gone is fine.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s: %w", sig, p.spec.Name, err)
	}
	return nil
}

func (p *Process) wait(limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%s (%d) did not end within %s", p.spec.Name, p.PID(), limit)
	}
}

// failed describes the end of a process that should still run.
func (p *Process) failed() error {
	if p.Alive() {
		return nil
	}
	data, err := os.ReadFile(p.log)
	if err != nil {
		data = []byte(err.Error())
	}
	return fmt.Errorf("%s ended (%w): %s", p.spec.Name, p.err, bytes.TrimSpace(tail(data, 12)))
}

// Result of a command that was run to its end.
type Result struct {
	// Stdout of the command.
	Stdout string
	// Stderr of the command.
	Stderr string
	// Code that the command ended with; -1 if a signal ended it.
	Code int
}

// Run runs a command to its end. The error tells of a command that could not be run or ended with another code than 0; the result is there anyway.
func (f *Fleet) Run(ctx context.Context, spec Command) (Result, error) {
	var out, errs bytes.Buffer
	err := f.RunTo(ctx, spec, &out, &errs)
	res := Result{Stdout: out.String(), Stderr: errs.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		res.Code = exit.ExitCode()
	}
	if err != nil {
		return res, fmt.Errorf("%s %s: %w: %s", filepath.Base(spec.Path), strings.Join(spec.Args, " "), err, strings.TrimSpace(res.Stderr))
	}
	return res, nil
}

// RunTo is Run with its output sent to writers as it comes.
func (f *Fleet) RunTo(ctx context.Context, spec Command, stdout, stderr io.Writer) error {
	cmd := exec.CommandContext(ctx, spec.Path, spec.Args...)
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Dir = f.dir
	cmd.Stdin = strings.NewReader(spec.Stdin)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Ends the wait for output that a grandchild still holds open.
	cmd.WaitDelay = 5 * time.Second
	if err := spawn(cmd, spec.Machine); err != nil {
		return fmt.Errorf("start %s: %w", spec.Path, err)
	}
	return cmd.Wait()
}
