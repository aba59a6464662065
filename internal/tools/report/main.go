// Command report reads `go test -json` on standard input and prints what a person wants to see: failures with their output while they happen, one line for each
// package, and at the end what was skipped, why, and how many tests there were. It runs no test and decides nothing but its exit status.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	name := flag.String("name", "test", "what the closing lines call this run")
	to := flag.String("to", "", "`FILE` that gets the packages' lines and the closing ones, to be shown again")
	note := flag.String("note", "", "a line for the closing lines, such as a restriction of this run")
	each := flag.Bool("each", false, "print a line for every top-level test, not only for failures")
	flag.Parse()

	r := &report{out: os.Stdout, each: *each, output: map[test][]string{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
	closing := r.closing(*name, *note)
	if *to != "" {
		if err := save(*to, strings.Join(r.lines, "")+closing); err != nil {
			fmt.Fprintln(os.Stderr, "report:", err)
			os.Exit(2)
		}
	}
	fmt.Fprint(os.Stdout, closing)
	if !r.ok() {
		os.Exit(1)
	}
}

func save(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// event is one line of `go test -json` (see `go doc test2json`); build failures carry an import path instead of a package.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

// test names a test; a package's own output has an empty name.
type test struct{ pkg, name string }

// report collects the events of one run.
type report struct {
	out    io.Writer
	each   bool
	output map[test][]string // of what has not ended yet

	passed, skipped, failed int
	packages, broken        int      // broken packages did not build or did not end as they should
	lines                   []string // go test's line about each package
	skips                   []skip
	failures                []string // failed tests
	first                   []string // what each failed test said first of itself
}

// skip is what a package skipped for one reason.
type skip struct {
	pkg, reason string
	tests       []string
}

func (r *report) skip(pkg, name, why string) {
	for i, s := range r.skips {
		if s.pkg == pkg && s.reason == why {
			r.skips[i].tests = append(s.tests, name)
			return
		}
	}
	r.skips = append(r.skips, skip{pkg, why, []string{name}})
}

// read consumes the events until the end. Lines that are no event are printed as they are: go test writes some before the first test.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if line[0] != '{' || json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line)
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	key := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
		delete(r.output, key)
	}
}

func (r *report) endTest(e event) {
	text := r.output[test{e.Package, e.Test}]
	switch e.Action {
	case "pass":
		r.passed++
	case "skip":
		r.skipped++
		r.skip(short(e.Package), e.Test, reason(text))
	case "fail":
		r.failed++
		r.failures = append(r.failures, fmt.Sprintf("%s (%s)", e.Test, short(e.Package)))
		r.first = append(r.first, firstLines(text))
		fmt.Fprint(r.out, strings.Join(text, ""))
	}
	if r.each && e.Action != "fail" && !strings.Contains(e.Test, "/") {
		fmt.Fprintf(r.out, "--- %s: %s (%.2fs)\n", strings.ToUpper(e.Action), e.Test, e.Elapsed)
	}
}

// endPackage prints a package's closing line and, if the package failed, all that it wrote outside of its tests. A failed package without a failed test did not
// build, panicked, raced or ran out of time: then the tests still open hold the reason.
func (r *report) endPackage(e event) {
	var closing string
	text := r.output[test{pkg: e.Package}]
	for _, line := range text {
		if isClosing(line) {
			closing = strings.TrimRight(line, "\n")
		}
	}
	if e.Action == "skip" && strings.Contains(closing, "[no test files]") {
		return
	}
	r.packages++
	if e.Action == "fail" {
		if !slices.ContainsFunc(r.failures, func(f string) bool { return strings.HasSuffix(f, "("+short(e.Package)+")") }) {
			r.broken++
		}
		for key, open := range r.output {
			if key.pkg == e.Package && key.name != "" {
				fmt.Fprint(r.out, strings.Join(open, ""))
				delete(r.output, key)
			}
		}
		for _, line := range text {
			if !isClosing(line) {
				fmt.Fprint(r.out, line)
			}
		}
		if closing == "" {
			closing = "FAIL\t" + e.Package
		}
	}
	if closing != "" {
		fmt.Fprintln(r.out, closing)
		r.lines = append(r.lines, closing+"\n")
	}
}

// closing returns what the run ends with: what was skipped, what failed, and the sum.
func (r *report) closing(name, note string) string {
	var b strings.Builder
	for _, s := range r.skips {
		fmt.Fprintf(&b, "%s: skipped in %s: %s (%s)\n", name, s.pkg, s.reason, strings.Join(s.tests, " "))
	}
	for i, failure := range r.failures {
		fmt.Fprintf(&b, "%s: FAILED %s\n%s", name, failure, r.first[i])
	}
	if note != "" {
		fmt.Fprintf(&b, "%s: %s\n", name, note)
	}
	verdict := "ok"
	if !r.ok() {
		verdict = "FAIL"
	}
	fmt.Fprintf(&b, "%s: %s: %d tests passed, %d failed, %d skipped in %d packages", name, verdict, r.passed, r.failed, r.skipped, r.packages)
	if r.broken > 0 {
		fmt.Fprintf(&b, ", %d of them broken outside of a test", r.broken)
	}
	return b.String() + "\n"
}

// ok says whether the run may count as a success. A run of nothing may not: a wrong path would look like one.
func (r *report) ok() bool {
	return r.failed == 0 && r.broken == 0 && r.packages > 0
}

var closingLine = regexp.MustCompile(`^(ok  |FAIL|\?   |---)\t\S+`)

// isClosing tells go test's last line about a package from the package's own output.
func isClosing(line string) bool {
	return closingLine.MatchString(line)
}

var at = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)`)

// firstLines returns the first things that a failed test said, shortened: in a long log they are far above the end, which is all that some readers get.
func firstLines(text []string) string {
	const lines, width = 6, 300
	var b strings.Builder
	said := 0
	for _, line := range text {
		if line = strings.TrimRight(line, "\n"); at.MatchString(line) && said < lines {
			b.WriteString(line[:min(len(line), width)] + "\n")
			said++
		}
	}
	return b.String()
}

// reason finds what a skipped test said in its call of Skip, which is the last thing that it says.
func reason(text []string) string {
	for _, line := range slices.Backward(text) {
		if m := at.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			return m[1]
		}
	}
	return "it gave no reason"
}

// short drops the module's path, which every package shares.
func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/spheroseg/muster/")
}
