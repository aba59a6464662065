package stack

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DefaultReloadSignal is what a service is told to reload by when it names no other.
const DefaultReloadSignal = "SIGHUP"

// asking are the signals that ask a process for something and leave it running, as far as the process handles them.
func asking() []string {
	return []string{"SIGALRM", "SIGCONT", "SIGHUP", "SIGQUIT", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGWINCH"}
}

// Signal returns the full name of a signal that may be sent to the instances of a service: SIGHUP for HUP, sighup and SIGHUP. Signals that end or
// freeze a process are refused: there are procedures for that, which keep the floor and are undone.
func Signal(name string) (string, error) {
	full := strings.ToUpper(strings.TrimSpace(name))
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if slices.Contains(asking(), full) || realTime(full) {
		return full, nil
	}
	switch full {
	case "SIGTERM", "SIGKILL", "SIGINT", "SIGABRT":
		return "", fmt.Errorf("%s ends the process behind Muster's back: use `musterctl service stop`, or `musterctl service restart`", full)
	case "SIGSTOP", "SIGTSTP":
		return "", fmt.Errorf("%s freezes the process, which goes on being sent requests: use `musterctl service stop`", full)
	case "SIG":
		return "", fmt.Errorf("the signal has no name: there are %s", strings.Join(asking(), ", "))
	}
	if _, err := strconv.Atoi(strings.TrimSpace(name)); err == nil {
		return "", fmt.Errorf("signal %s is a number, which differs between platforms: write its name, like SIGHUP", name)
	}
	return "", fmt.Errorf("there is no signal %s that could be sent%s; there are %s", cut(name), didYouMean(full, asking()), strings.Join(asking(), ", "))
}

// realTime says whether a name is that of a real-time signal: SIGRTMIN+3.
func realTime(full string) bool {
	if full == "SIGRTMIN" || full == "SIGRTMAX" {
		return true
	}
	for prefix, limit := range map[string]int{"SIGRTMIN+": 15, "SIGRTMAX-": 14} {
		if text, ok := strings.CutPrefix(full, prefix); ok {
			n, err := strconv.Atoi(text)
			return err == nil && n >= 1 && n <= limit && strconv.Itoa(n) == text
		}
	}
	return false
}

// DidYouMean returns "; did you mean X?" for the known name that is nearest to a wrong one, or nothing if none is near.
func DidYouMean(wrong string, known []string) string { return didYouMean(wrong, known) }
