package command_test

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spheroseg/muster/ctl/internal/command"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// person sits at a terminal: types when a text shows, and reads everything.
type person struct {
	tty    *os.File
	master *os.File

	mu   sync.Mutex
	seen bytes.Buffer
	acts []act
	done sync.WaitGroup
}

// act is what is done when a text is seen.
type act struct {
	text string
	do   func(p *person)
}

// sitDown opens a pseudo-terminal of 80 by 24.
func sitDown(t *testing.T, acts ...act) *person {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals, so prompts and live rows are not tested: %v", err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{tty: tty, master: master, acts: acts}
	p.done.Go(p.read)
	t.Cleanup(func() {
		_ = tty.Close()
		_ = master.Close()
		p.done.Wait()
	})
	return p
}

// read ends when the terminal is closed.
func (p *person) read() {
	b := make([]byte, 4096)
	for {
		n, err := p.master.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.seen.Write(b[:n])
		var do func(*person)
		if len(p.acts) > 0 && strings.Contains(p.seen.String(), p.acts[0].text) {
			do, p.acts = p.acts[0].do, p.acts[1:]
		}
		p.mu.Unlock()
		if do != nil {
			do(p)
		}
	}
}

func (p *person) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.ReplaceAll(p.seen.String(), "\r\n", "\n")
}

func types(text string) func(*person) {
	return func(p *person) { _, _ = p.master.WriteString(text) }
}

// at runs musterctl at a person's terminal.
func (d *desk) at(p *person, line string) int {
	d.t.Helper()
	return command.Run(d.t.Context(), command.Options{
		Args: strings.Fields(line), Stdin: p.tty, Stdout: p.tty, Stderr: p.tty,
		Env: func(n string) (string, bool) { v, ok := d.env[n]; return v, ok },
		Now: noon, WorkingDirectory: d.dir, Interrupts: d.interrupts,
	})
}

func (d *desk) started() int {
	n := 0
	for _, m := range d.cluster.Nodes[0].Calls("ApplyStack") {
		if !m.(*coordinatorv1.ApplyStackRequest).GetDryRun() {
			n++
		}
	}
	return n
}

func TestPrompts(t *testing.T) {
	const question = "apply this to stack demo? [y/N] "
	tests := []struct {
		name, line string
		acts       func(d *desk) []act
		code       int
		started    int
		want       string
	}{
		{"yes", "stack apply", func(*desk) []act { return []act{{question, types("y\n")}} }, 0, 1, "run/r-3 succeeded"},
		{"no", "stack apply", func(*desk) []act { return []act{{question, types("n\n")}} }, 5, 0, "Error: declined: nothing was changed\n"},
		{"return", "stack apply", func(*desk) []act { return []act{{question, types("\n")}} }, 5, 0, "declined"},
		{"end of input", "stack apply", func(*desk) []act { return []act{{question, types("\x04")}} }, 5, 0, "declined"},
		{"Ctrl-C", "stack apply", func(d *desk) []act {
			return []act{{question, func(*person) { d.interrupts <- syscall.SIGINT }}}
		}, 130, 0, "Cause: interrupted"},
		{"-y asks nothing", "stack apply -y", func(*desk) []act { return nil }, 0, 1, "run/r-3 succeeded"},
		{"--no-input applies as a pipeline does", "stack apply --no-input", func(*desk) []act { return nil }, 0, 1, "run/r-3 succeeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := planner(t, 1, plan())
			p := sitDown(t, tt.acts(d)...)
			code := d.at(p, tt.line+" --color never")
			wait(t, p, tt.want)
			if code != tt.code || d.started() != tt.started {
				t.Errorf("exit code %d, want %d; %d were started, want %d:\n%s", code, tt.code, d.started(), tt.started, p.text())
			}
		})
	}
}

// wait waits until a text was seen: what a program wrote may still be on its way to the person.
func wait(t *testing.T, p *person, text string) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(p.text(), text) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%q did not show:\n%s", text, p.text())
		}
	}
}

// TestSecondCtrlCAsksToCancel presses Ctrl-C twice, and answers.
func TestSecondCtrlCAsksToCancel(t *testing.T) {
	for answer, want := range map[string]struct {
		code, cancels int
		text          string
	}{
		"y\n": {5, 1, "run/r-3 was cancelled; everything is as before"},
		"n\n": {6, 0, "detached: run/r-3 goes on"},
	} {
		d := planner(t, 1, plan())
		d.endless()
		p := sitDown(t, act{"web-1  pull", func(*person) { d.interrupts <- syscall.SIGINT }},
			act{"press Ctrl-C again within 2 s to cancel it", func(*person) { d.interrupts <- syscall.SIGINT }},
			act{"cancel run/r-3 and take back what it did? [y/N] ", types(answer)})
		code := d.at(p, "stack apply -y --color never")
		wait(t, p, want.text)
		if n := len(d.cluster.Nodes[0].Calls("CancelRun")); code != want.code || n != want.cancels {
			t.Errorf("%q: exit code %d, want %d; %d cancels, want %d:\n%s", answer, code, want.code, n, want.cancels, p.text())
		}
	}
}

// TestLiveRows looks at what a person sees of a run.
func TestLiveRows(t *testing.T) {
	d := planner(t, 1, plan())
	d.cluster.Nodes[0].OnWatch(func(_ *coordinatorv1.WatchRunRequest, s watchStream) error {
		a := ended(coordinatorv1.RunState_RUN_STATE_ROLLED_BACK)
		a.Steps = runDetail().GetSteps()
		return s.Send(a)
	})
	p := sitDown(t)
	code := d.at(p, "run watch r-3 --color never")
	wait(t, p, "Hint:  musterctl run show r-3\n")
	for _, want := range []string{"run/r-3  rolled-back  12/12 steps  14s  apply demo, release 3  locks stack/demo", "INSTANCE  HOST   STEP   AGE  STATE", "web.1     web-1  ready  5s   failed",
		"web.2     web-2  pull   12s  unknown", "    panic: \\u001b[31mno config\\u001b[0m\n"} {
		if !strings.Contains(p.text(), want) {
			t.Errorf("%q is not in\n%s", want, p.text())
		}
	}
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
}

// TestSecretPrompt reads a value that does not show.
func TestSecretPrompt(t *testing.T) {
	tests := []struct {
		name, keys, value string
		code              int
		want              string
	}{
		{"a value", "huxx\x7f\x7fsh\r", "hush", 0, "secret/jwt has version 3 now"},
		{"nothing", "\r", "", 2, "the value of jwt is empty"},
		{"Ctrl-C", "hu\x03", "", 130, "Cause: interrupted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := loggedIn(t, 1)
			d.fill()
			p := sitDown(t, act{"value of jwt (it is not shown): ", func(p *person) {
				for { // what is typed before the terminal is silent would show.
					if s, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS); err != nil || s.Lflag&unix.ECHO == 0 {
						break
					}
					runtime.Gosched()
				}
				types(tt.keys)(p)
			}})
			code := d.at(p, "secret set jwt --color never")
			wait(t, p, tt.want)
			var value []byte
			for _, m := range d.cluster.Nodes[0].Calls("PutSecret") {
				value = m.(*coordinatorv1.PutSecretRequest).GetValue()
			}
			if code != tt.code || string(value) != tt.value || strings.Contains(p.text(), "hu") {
				t.Errorf("exit code %d, value %q, screen %q", code, value, p.text())
			}
			if s, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS); err != nil || s.Lflag&unix.ECHO == 0 {
				t.Errorf("the terminal stays silent: %v", err)
			}
		})
	}
}

// TestDumbTerminal gets plain lines and no escape sequences.
func TestDumbTerminal(t *testing.T) {
	d := planner(t, 1, plan())
	d.env["TERM"] = "dumb"
	p := sitDown(t)
	code := d.at(p, "stack apply")
	wait(t, p, "- run/r-3 succeeded\n")
	if code != 0 || strings.Contains(p.text(), "\x1b") {
		t.Errorf("exit code %d, %q", code, p.text())
	}
}
