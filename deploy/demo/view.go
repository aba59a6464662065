package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// view writes the story. On a terminal its last line is a status that changes in place; elsewhere the status is written now and then.
type view struct {
	out      *os.File
	terminal bool
	colour   bool
	start    time.Time

	mu     sync.Mutex
	status string
	shown  time.Time
}

func newView(out *os.File) *view {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	return &view{out: out, terminal: terminal, colour: terminal && os.Getenv("NO_COLOR") == "", start: time.Now()}
}

func (v *view) paint(code, text string) string {
	if !v.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (v *view) bold(text string) string  { return v.paint("1", text) }
func (v *view) green(text string) string { return v.paint("32", text) }
func (v *view) red(text string) string   { return v.paint("31", text) }
func (v *view) faint(text string) string { return v.paint("2", text) }

// line writes a line above the status.
func (v *view) line(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.write(fmt.Sprintf(format, args...) + "\n")
}

// write is called with mu held.
func (v *view) write(text string) {
	if !v.terminal {
		_, _ = v.out.WriteString(text)
		return
	}
	_, _ = v.out.WriteString("\r\x1b[K" + text + v.status)
}

// say writes what happens, with the time since the start.
func (v *view) say(format string, args ...any) {
	v.line("  %s %s", v.faint(fmt.Sprintf("%5.1fs", time.Since(v.start).Seconds())), fmt.Sprintf(format, args...))
}

// head writes the headline of an act.
func (v *view) head(format string, args ...any) {
	v.line("\n%s", v.bold("▌ "+fmt.Sprintf(format, args...)))
}

// setStatus changes the status; an empty one takes it away.
func (v *view) setStatus(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.terminal {
		v.status = v.faint(text)
		v.write("")
		return
	}
	if text != "" && time.Since(v.shown) > 5*time.Second {
		v.shown = time.Now()
		v.write("  " + text + "\n")
	}
}

func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.status = ""
	if v.terminal {
		v.write("")
	}
}

// Write takes log lines.
func (v *view) Write(p []byte) (int, error) {
	v.line("  %s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// lines passes on what a program writes, line by line, through a function.
type lines struct {
	mu   sync.Mutex
	rest []byte
	each func(string)
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.each(string(l.rest[:i]))
		l.rest = l.rest[i+1:]
	}
}
