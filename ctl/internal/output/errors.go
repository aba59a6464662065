package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/rpcerr"
)

// Error is an error as it is shown: what did not work, why, and the command that helps.
type Error struct {
	// What did not work, one line.
	What string
	// Cause says why; empty if What says it all.
	Cause string
	// Reason is the ERROR_REASON of the cause without its prefix; empty if it has none.
	Reason string
	// Hint is an exact command, or what to do.
	Hint string
	// Code is the exit code.
	Code Code
	// Detail is shown with -v only.
	Detail string
}

// Error returns what and why in one line.
func (e *Error) Error() string {
	if e.Cause == "" {
		return e.What
	}
	return e.What + ": " + e.Cause
}

// Exit ends the program with a code and without a message: all has been said.
type Exit struct{ Code Code }

// Error names the code.
func (e Exit) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// Usage returns an error about the command line or its input.
func Usage(hint, format string, args ...any) *Error {
	return &Error{What: fmt.Sprintf(format, args...), Hint: hint, Code: CodeUsage}
}

// FromRPC returns the error to show for a call that did not work. hints override the general hint of a reason.
func FromRPC(what string, err error, hints map[string]string) *Error {
	var shown *Error
	if errors.As(err, &shown) {
		return shown
	}
	reason := rpcerr.Reason(err)
	e := &Error{What: what, Cause: cause(err), Reason: reason, Code: codeOf(err)}
	if s, ok := status.FromError(err); ok {
		e.Detail = "code " + s.Code().String()
	}
	e.Hint = hints[reason]
	if e.Hint == "" {
		e.Hint = hintFor(reason, rpcerr.Metadata(err))
	}
	if reason == "" && e.Hint == "" {
		e.Hint = hintForStatus(status.Code(err))
	}
	return e
}

func codeOf(err error) Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return CodeDetached
	case errors.Is(err, context.Canceled):
		return CodeInterrupted
	case rpcerr.Reason(err) == "TOO_LARGE":
		return CodeUsage // ResourceExhausted on the wire, but it is the input that has to change.
	}
	return CodeOfStatus(status.Code(err))
}

func cause(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer within --timeout"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	if s, ok := status.FromError(err); ok {
		if s.Code() == codes.DeadlineExceeded && rpcerr.Reason(err) == "" {
			return "no answer within --timeout"
		}
		if s.Code() == codes.Canceled && rpcerr.Reason(err) == "" {
			return "interrupted"
		}
	}
	return rpcerr.Message(err)
}

// hints is what helps against a reason, by its name. A word in braces is filled in from what the error names, or stands for it: {run:RUN}.
func hints() map[string]string {
	return map[string]string{
		"STACK_NOT_FOUND":     "musterctl stack list",
		"RELEASE_NOT_FOUND":   "musterctl stack history {stack:STACK}",
		"IMAGE_NOT_FOUND":     "push the image to its registry, or correct its name in the file, and repeat the command",
		"SECRET_NOT_FOUND":    "musterctl secret set {secret:NAME} --from-file FILE",
		"NO_GATE":             "give the service a healthcheck or a gate in x-muster, or repeat the command with --no-gate",
		"NO_CAPACITY":         "musterctl host list -o wide",
		"PLACEMENT":           "musterctl host list -o wide",
		"SERVICE_NOT_FOUND":   "musterctl service list",
		"STEP_NOT_ASKING":     "musterctl run show {run:RUN}",
		"PROCEDURE_INVALID":   "musterctl procedure lint FILE",
		"PROCEDURE_NOT_FOUND": "musterctl procedure list",
		"PEER_NOT_FOUND":      "musterctl operator raft peers",
		"QUORUM":              "musterctl operator raft peers",
		"SNAPSHOT_INVALID":    "musterctl operator snapshot inspect FILE",
		"CANNOT_DRAIN":        "remove what holds the instances, or stop their services; musterctl host cordon keeps others away meanwhile",
		"HOST_DOWN":           "musterctl host list",
		"HOST_NOT_FOUND":      "musterctl host list",
		"PORT_TAKEN":          "musterctl service ps --host {host:HOST}",
		"PLAN_CHANGED":        "repeat the command with --dry-run to see the plan as it is now",
		"CONFLICT":            "repeat the command",
		"RUN_NOT_FOUND":       "musterctl run list",
		"RUN_FINISHED":        "musterctl run show {run:RUN}",
		"RUN_NOT_RUNNING":     "musterctl run show {run:RUN}",
		"RUN_NOT_PAUSED":      "musterctl run show {run:RUN}",
		"NO_LEADER":           "musterctl operator raft peers",
		"NOT_LEADER":          "musterctl operator raft peers",
		"STALE":               "musterctl operator raft peers",
		"JOIN_DENIED":         "a token works once and for a short time; ask an admin for a new one: musterctl operator user token --for NAME --role operator",
		"NOT_ALLOWED":         "ask an admin for a token of a role that may: musterctl operator user token --for NAME --role operator",
		"UNKNOWN_IDENTITY":    "musterctl login --coordinator HOST:PORT --token-file FILE",
		"REQUEST_REUSED":      "repeat the command without --request-id",
		"RATE_LIMITED":        "wait {retry_after:a minute} and repeat the command",
		"POLICY":              "change the policy file of the host, or the stack file",
		"LOCK_HELD":           "musterctl run list --active",
	}
}

var placeholder = regexp.MustCompile(`\{(\w+):([^}]+)\}`)

// hintFor returns what helps against a reason. meta may name the objects that are concerned.
func hintFor(reason string, meta map[string]string) string {
	if run := meta["run"]; run != "" && reason == "LOCK_HELD" {
		return "musterctl run watch " + run
	}
	return placeholder.ReplaceAllStringFunc(hints()[reason], func(word string) string {
		parts := placeholder.FindStringSubmatch(word)
		if named := meta[parts[1]]; named != "" {
			return named
		}
		return parts[2]
	})
}

func hintForStatus(c codes.Code) string {
	switch c {
	case codes.Unavailable:
		return "look whether a coordinator runs at these addresses, or name others with --server HOST:PORT"
	case codes.Unauthenticated:
		return "musterctl login --coordinator HOST:PORT --token-file FILE"
	case codes.Unimplemented:
		return "musterctl version"
	case codes.DeadlineExceeded:
		return "repeat the command with a longer --timeout"
	}
	return ""
}

// CodeOf returns the exit code of an error that a command returned.
func CodeOf(err error) Code {
	if err == nil {
		return CodeDone
	}
	var exit Exit
	if errors.As(err, &exit) {
		return exit.Code
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return codeOf(err)
}

// Render writes an error for a person. It writes nothing for Exit.
func Render(w io.Writer, err error, style Style, verbose bool) {
	var exit Exit
	if err == nil || errors.As(err, &exit) {
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{What: cause(err)}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", style.Paint(ToneBad, "Error:"), Clean(e.What))
	for i, line := range Lines(e.Cause) {
		if i > 0 { // A list of what is in the way, one a line.
			fmt.Fprintf(&b, "       %s\n", strings.TrimSpace(line))
			continue
		}
		fmt.Fprintf(&b, "Cause: %s", line)
		if e.Reason != "" {
			fmt.Fprintf(&b, " (%s)", e.Reason)
		}
		b.WriteString("\n")
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "Hint:  %s\n", Clean(e.Hint))
	}
	if verbose && e.Detail != "" {
		fmt.Fprintf(&b, "Detail: %s\n", Clean(e.Detail))
	}
	_, _ = io.WriteString(w, b.String())
}
