//go:build e2e || crash

package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/deploy/fleet"
)

// effects makes a record of words like "start web.1", a second apart from each other.
func effects(words ...string) record {
	var r record
	for i, w := range words {
		action, name, _ := strings.Cut(w, " ")
		service, _, _ := strings.Cut(name, ".")
		body, _ := json.Marshal(map[string]any{"Labels": map[string]string{"muster.stack": "shop", "muster.service": service}})
		r = append(r, fleet.Effect{At: int64(i+1) * int64(time.Second), Action: action, Name: name, Body: body})
	}
	return r
}

// TestCrashCheckers plants what the checkers of the crash points must find.
func TestCrashCheckers(t *testing.T) {
	before := []string{"create web.1", "start web.1"}
	for _, tt := range []struct {
		name            string
		after           []string
		away            int
		repeats, breaks bool
	}{
		{"start-first", []string{"create web.2", "start web.2", "die web.1", "destroy web.1"}, 0, false, false},
		{"created twice", []string{"create web.2", "start web.2", "create web.2", "die web.1"}, 0, true, false},
		{"restarted twice", []string{"die web.1", "start web.1", "die web.1", "start web.1"}, 1, true, false},
		{"stop-first", []string{"create web.2", "die web.1", "start web.2"}, 0, false, true},
		{"stop-first where one may be away", []string{"create web.2", "die web.1", "start web.2"}, 1, false, false},
		{"gone for good", []string{"die web.1", "destroy web.1"}, 0, false, false},
		{"policies change as often as they like", []string{"policy web.1", "policy web.1"}, 0, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			was, all := effects(before...), effects(append(before[:2:2], tt.after...)...)
			if found := all.repeated(len(was)); (len(found) > 0) != tt.repeats {
				t.Errorf("repeated: %v", found)
			}
			if found := broken([]record{was}, []record{all}, tt.away); (len(found) > 0) != tt.breaks {
				t.Errorf("broken: %v", found)
			}
		})
	}
	// Not ready yet is not ready.
	quick := effects(append(before[:2:2], "create web.2", "start web.2", "die web.1")...)
	quick[4].At = quick[3].At + int64(rigReady)/2
	if found := broken([]record{quick[:2]}, []record{quick}, 0); len(found) != 1 {
		t.Errorf("the old one stopped before the new one was ready: found %v", found)
	}
}
