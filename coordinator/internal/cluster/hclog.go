package cluster

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// hcLogger lets raft and its log store write to slog: same messages, attributes in snake_case.
type hcLogger struct {
	to      *slog.Logger
	name    string
	implied []any
}

func newHCLog(to *slog.Logger) hclog.Logger { return &hcLogger{to: to} }

func (l *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	if !l.enabled(level) {
		return
	}
	attrs := make([]any, 0, len(l.implied)+len(args)+2)
	if l.name != "" {
		attrs = append(attrs, "part", l.name)
	}
	for _, list := range [][]any{l.implied, args} {
		for i := 0; i < len(list); i += 2 {
			if i+1 == len(list) {
				attrs = append(attrs, "extra", plain(list[i]))
				break
			}
			attrs = append(attrs, attrName(list[i]), plain(list[i+1]))
		}
	}
	l.to.Log(context.Background(), slogLevel(level), msg, attrs...) //nolint:sloglint // raft's messages are constants of its own
}

func attrName(key any) string {
	name := strings.ReplaceAll(fmt.Sprint(key), "-", "_")
	if name == "error" {
		return "err"
	}
	return name
}

// plain resolves hclog's own value types.
func plain(v any) any {
	f, ok := v.(hclog.Format)
	if !ok || len(f) == 0 {
		return v
	}
	format, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(format, f[1:]...)
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error:
		return slog.LevelError
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Info:
		return slog.LevelInfo
	case hclog.Trace:
		return slog.LevelDebug - 4
	default:
		return slog.LevelDebug
	}
}

func (l *hcLogger) enabled(level hclog.Level) bool {
	return l.to.Enabled(context.Background(), slogLevel(level))
}

func (l *hcLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *hcLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *hcLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *hcLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *hcLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }
func (l *hcLogger) IsTrace() bool                 { return l.enabled(hclog.Trace) }
func (l *hcLogger) IsDebug() bool                 { return l.enabled(hclog.Debug) }
func (l *hcLogger) IsInfo() bool                  { return l.enabled(hclog.Info) }
func (l *hcLogger) IsWarn() bool                  { return l.enabled(hclog.Warn) }
func (l *hcLogger) IsError() bool                 { return l.enabled(hclog.Error) }
func (l *hcLogger) ImpliedArgs() []any            { return l.implied }
func (l *hcLogger) Name() string                  { return l.name }

func (l *hcLogger) With(args ...any) hclog.Logger {
	c := *l
	c.implied = append(append([]any{}, l.implied...), args...)
	return &c
}

func (l *hcLogger) Named(name string) hclog.Logger {
	if l.name != "" {
		name = l.name + "." + name
	}
	return l.ResetNamed(name)
}

func (l *hcLogger) ResetNamed(name string) hclog.Logger {
	c := *l
	c.name = name
	return &c
}

// SetLevel does nothing: the slog handler decides.
func (l *hcLogger) SetLevel(hclog.Level) {}

func (l *hcLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn} {
		if l.enabled(level) {
			return level
		}
	}
	return hclog.Error
}

func (l *hcLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelInfo)
}

func (l *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelInfo).Writer()
}
