// Package logging makes the logger of a program from its flags. What is logged, and at which level, is left to the callers.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// New returns a logger that writes to w. The level is debug, info, warn or error; the format is text or json; an empty one means info and text.
func New(w io.Writer, level, format string) (*slog.Logger, error) {
	min := slog.LevelInfo
	switch strings.ToLower(level) {
	case "debug":
		min = slog.LevelDebug
	case "", "info":
	case "warn":
		min = slog.LevelWarn
	case "error":
		min = slog.LevelError
	default:
		return nil, fmt.Errorf("log level %q is not known: use debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: min}
	switch strings.ToLower(format) {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	default:
		return nil, fmt.Errorf("log format %q is not known: use text or json", format)
	}
}
