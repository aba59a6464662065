package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/spheroseg/muster/ctl/internal/follow"
	"github.com/spheroseg/muster/ctl/internal/output"
)

// terminal tells whether w is a terminal that understands cursor movements.
func (a *app) terminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false
	}
	kind, _ := a.Env("TERM")
	return kind != "dumb"
}

// interactive tells whether a person can be asked.
func (a *app) interactive() bool {
	return !a.noInput && a.terminal(a.Stdin) && a.terminal(a.Stderr)
}

// clearEcho removes the ^C that the terminal has echoed.
func (a *app) clearEcho() {
	if a.terminal(a.Stderr) {
		_, _ = io.WriteString(a.Stderr, "\r\x1b[K")
	}
}

// size returns the size of the terminal behind w, whenever it is asked for: windows are resized.
func (a *app) size(w any) follow.Size {
	f, ok := w.(*os.File)
	return func() (int, int) {
		if ok {
			if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
				return width, height
			}
		}
		return 80, 24
	}
}

// confirm asks whether to go on. Where nobody can be asked it names the flag that answers.
func (a *app) confirm(ctx context.Context, c *change, what string) error {
	if c.yes || c.planHash != "" {
		return nil
	}
	if !a.interactive() {
		return output.Usage("repeat the command with --yes", "%s: this needs a confirmation, and there is nobody to ask", what)
	}
	yes, err := a.ask(ctx, what+"?", nil)
	if err != nil {
		return a.fail("nothing was changed", err, nil)
	}
	if !yes {
		return &output.Error{What: "declined: nothing was changed", Code: output.CodeDeclined}
	}
	return nil
}

// ask returns whether the answer is yes. An interrupt ends the asking.
func (a *app) ask(ctx context.Context, question string, interrupts <-chan os.Signal) (bool, error) {
	_, _ = io.WriteString(a.Stderr, output.Clean(question)+" [y/N] ")
	line, err := a.readLine(ctx, interrupts)
	if err != nil {
		_, _ = io.WriteString(a.Stderr, "\n")
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}

// readLine reads a line from the terminal.
func (a *app) readLine(ctx context.Context, interrupts <-chan os.Signal) (string, error) {
	var line strings.Builder
	for {
		key, err := a.readKey(ctx, interrupts)
		switch {
		case errors.Is(err, io.EOF), key == '\n':
			return line.String(), nil // the end of the input is an empty answer: no.
		case err != nil:
			return "", err
		}
		line.WriteByte(key)
	}
}

// readHidden reads a line from the terminal without showing it.
func (a *app) readHidden(ctx context.Context) (value []byte, err error) {
	f, ok := a.Stdin.(*os.File)
	if !ok {
		return nil, errNoTerminal()
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("hide what is typed: %w", err)
	}
	defer func() { err = errors.Join(err, term.Restore(int(f.Fd()), before)) }()
	for {
		key, err := a.readKey(ctx, nil)
		switch {
		case errors.Is(err, io.EOF), key == '\r', key == '\n', key == 4: // Ctrl-D
			return value, nil
		case err != nil:
			return nil, err
		case key == 3: // Ctrl-C is no signal while keys are not shown.
			return nil, context.Canceled
		case key == 8, key == 127:
			value = value[:max(0, len(value)-1)]
		default:
			value = append(value, key)
		}
	}
}

func errNoTerminal() error { return errors.New("standard input is not a terminal") }

// readKey reads one byte. It waits in short turns, so that nothing is left reading after an interrupt.
func (a *app) readKey(ctx context.Context, interrupts <-chan os.Signal) (byte, error) {
	f, ok := a.Stdin.(*os.File)
	if !ok {
		return 0, errNoTerminal()
	}
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-interrupts:
			return 0, context.Canceled
		default:
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 100)
		if errors.Is(err, unix.EINTR) || (err == nil && n == 0) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the terminal: %w", err)
		}
		var b [1]byte
		if n, err := f.Read(b[:]); err != nil || n == 0 {
			return 0, io.EOF
		}
		return b[0], nil
	}
}
