//go:build e2e

package e2e_test

import (
	"strings"
	"testing"
)

// superseded replaces an update that is going nowhere by another one: the first is taken back, then the second goes its way.
func superseded(t *testing.T, h *house) {
	before := h.version(t)
	target := map[string]string{"v1": "v2", "v2": "v1", "v5": "v1"}[before]
	mark := h.Witness.Mark()
	stop := h.loaded(t, false)
	first := h.applying(t, h.shop("bad"))
	first.until(t, h, mark, "start", 1)
	second := h.apply(t, h.shop(target), "--supersede")
	second.want(t, 0)
	if !strings.Contains(second.text, "is taken back first") {
		t.Errorf("nothing was superseded:\n%s", second.text)
	}
	if o := first.wait(); o.code == 0 || !strings.Contains(o.text, "superseded") {
		t.Errorf("the first ended with %d:\n%s", o.code, o.text)
	}
	report := stop()
	unharmed(t, report)
	if n := report.Versions["bad"]; n > 0 {
		t.Errorf("the version that never became ready answered %d requests", n)
	}
	h.settled(t, target)
	if o := h.ctl(t, "lock", "list"); o.code != 0 || !strings.Contains(o.text, "no lock is held") {
		t.Errorf("locks after the end:\n%s", o.text)
	}
}
