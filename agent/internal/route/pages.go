package route

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spheroseg/muster/internal/durable"
)

// pages remembers which routes show a page, in a file, so that a page comes back after a restart of the agent and ends when it must. What is
// remembered is what shall be; the proxy follows.
type pages struct {
	file string // empty: in memory only.
	all  []pageEntry
	// unsettled says that the proxy may show something else than what is remembered.
	unsettled bool
}

// pageEntry is one call of SetMaintenance. Of two that cover a route, the later one counts.
type pageEntry struct {
	// Pattern is a route's name, or stack.* for those of a stack, with those that are created later.
	Pattern string    `json:"pattern"`
	On      bool      `json:"on"`
	Until   time.Time `json:"until,omitzero"`
	Page    string    `json:"page,omitempty"`
}

// load reads the file. What it holds is not in the proxy yet, for all that is known.
func (p *pages) load() error {
	if p.file == "" {
		return nil
	}
	text, err := os.ReadFile(p.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pages of routes: %w", err)
	}
	if err := json.Unmarshal(text, &p.all); err != nil {
		return fmt.Errorf("pages of routes: %s is damaged: %w; remove it, and end what maintenance still shows by hand", p.file, err)
	}
	p.unsettled = len(p.all) > 0
	return nil
}

func (p *pages) save() error {
	if p.file == "" {
		return nil
	}
	text, err := json.Marshal(p.all)
	if err != nil {
		return err
	}
	return durable.WriteFile(p.file, text, 0o600)
}

// set adds an entry, which takes the place of all that it covers.
func (p *pages) set(e pageEntry) {
	p.all = slices.DeleteFunc(slices.Clone(p.all), func(old pageEntry) bool { return covers(e.Pattern, old.Pattern) })
	p.all = append(p.all, e)
}

// takeBack returns to the entries of before. Routes that had none are ended, for they may show their page by now.
func (p *pages) takeBack(before []pageEntry, patterns []string) {
	p.all = before
	for _, pattern := range patterns {
		if !slices.ContainsFunc(before, func(old pageEntry) bool { return covers(old.Pattern, pattern) || covers(pattern, old.Pattern) }) {
			p.set(pageEntry{Pattern: pattern})
		}
	}
}

// expire ends what has had its time, and returns the patterns.
func (p *pages) expire(now time.Time) []string {
	var ended []string
	for i, e := range p.all {
		if e.On && !now.Before(e.Until) {
			p.all[i] = pageEntry{Pattern: e.Pattern}
			ended = append(ended, e.Pattern)
		}
	}
	return ended
}

// settled drops what says nothing any more: a route shows no page unless an entry says so.
func (p *pages) settled() {
	p.unsettled = false
	kept := p.all[:0:0]
	for _, e := range p.all {
		if e.On || slices.ContainsFunc(kept, func(old pageEntry) bool { return old.On && covers(old.Pattern, e.Pattern) }) {
			kept = append(kept, e)
		}
	}
	p.all = kept
}

// shown returns the page that a route shall show; false for none.
func (p *pages) shown(name string, now time.Time) (string, bool) {
	for _, e := range slices.Backward(p.all) {
		if covers(e.Pattern, name) {
			return e.Page, e.On && now.Before(e.Until)
		}
	}
	return "", false
}

// known says that there is an entry for the route.
func (p *pages) known(name string) bool {
	return slices.ContainsFunc(p.all, func(e pageEntry) bool { return covers(e.Pattern, name) })
}

// next is when the first page ends by itself; false if none does.
func (p *pages) next() (time.Time, bool) {
	var first time.Time
	for _, e := range p.all {
		if e.On && (first.IsZero() || e.Until.Before(first)) {
			first = e.Until
		}
	}
	return first, !first.IsZero()
}

// covers says that a pattern matches a route's name, or all that another pattern matches.
func covers(pattern, name string) bool {
	stack, all := strings.CutSuffix(pattern, "*")
	return pattern == name || all && strings.HasPrefix(name, stack)
}
