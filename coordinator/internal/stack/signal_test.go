package stack_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/coordinator/internal/stack"
)

func TestSignal(t *testing.T) {
	for given, want := range map[string]string{
		"HUP": "SIGHUP", "sighup": "SIGHUP", "SIGUSR1": "SIGUSR1", "usr2": "SIGUSR2", "winch": "SIGWINCH", "QUIT": "SIGQUIT",
		"RTMIN": "SIGRTMIN", "rtmin+3": "SIGRTMIN+3", "SIGRTMAX-14": "SIGRTMAX-14",
	} {
		if got, err := stack.Signal(given); err != nil || got != want {
			t.Errorf("%q is %q, %v, want %s", given, got, err, want)
		}
	}
	for given, want := range map[string]string{
		"KILL": "musterctl service stop", "sigterm": "musterctl service restart", "INT": "ends the process", "STOP": "freezes", "TSTP": "freezes",
		"": "has no name", "1": "write its name", "15": "write its name", "SIGHUPP": "did you mean SIGHUP?", "USR3": "did you mean SIGUSR", "nonsense-signal": "there is no signal",
		"RTMIN+0": "there is no signal", "RTMIN+16": "there is no signal", "RTMIN+01": "there is no signal", "RTMAX+1": "there is no signal", "RTMIN+-1": "there is no signal",
		strings.Repeat("x", 5000): "there is no signal",
	} {
		if got, err := stack.Signal(given); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("%.40q is %q, %.500v, want it refused with %q", given, got, err, want)
		}
	}
}

func TestReloadKey(t *testing.T) {
	text := "services:\n  web:\n    image: example.com/web:1\n    x-muster: {reload: usr1}\n"
	reloaded := service(t, text)
	if got := reloaded.GetReloadSignal(); got != "SIGUSR1" {
		t.Errorf("reload signal %q", got)
	}
	plain := service(t, strings.Replace(text, "reload: usr1", "drain_limit: 1s", 1))
	if plain.GetReloadSignal() != "" {
		t.Errorf("reload signal %q of a service that names none", plain.GetReloadSignal())
	}
	other := proto.CloneOf(plain)
	other.ReloadSignal = "SIGUSR1"
	if stack.Replace(plain, other) {
		t.Error("another reload signal would replace containers")
	}
}
