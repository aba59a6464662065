package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const module = "github.com/spheroseg/muster/"
	tests := []struct {
		name, in     string
		want, refuse []string // parts of the packages' and the closing lines
		printed      string   // a part of what is printed on the way
		bad          bool
	}{
		{
			name: "pass and skip",
			in: `{"Action":"output","Package":"` + module + `a","Test":"TestA","Output":"    a_test.go:7: needs root\n"}
{"Action":"skip","Package":"` + module + `a","Test":"TestA"}
{"Action":"output","Package":"` + module + `a","Test":"TestC","Output":"    a_test.go:9: needs root\n"}
{"Action":"skip","Package":"` + module + `a","Test":"TestC"}
{"Action":"pass","Package":"` + module + `a","Test":"TestB"}
{"Action":"output","Package":"` + module + `a","Output":"ok  \t` + module + `a\t0.010s\n"}
{"Action":"pass","Package":"` + module + `a"}
`,
			want: []string{"ok  \t" + module + "a\t0.010s\n", "x: skipped in a: needs root (TestA TestC)\n", "x: ok: 1 tests passed, 0 failed, 2 skipped in 1 packages\n"},
		},
		{
			name: "a failure shows its output",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: got 1\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.010s\n"}
{"Action":"fail","Package":"p"}
`,
			want:    []string{"x: FAILED TestA (p)\n", "x: FAIL: 0 tests passed, 1 failed, 0 skipped in 1 packages\n"},
			printed: "a_test.go:7: got 1\n",
			bad:     true,
		},
		{
			name: "a package that does not build",
			in: `{"ImportPath":"p","Action":"build-output","Output":"p/a.go:3:1: syntax error\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","FailedBuild":"p"}
`,
			want:    []string{"FAIL\tp [build failed]\n", "1 of them broken outside of a test\n"},
			printed: "syntax error\n",
			bad:     true,
		},
		{
			name: "a panic leaves its test open",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.010s\n"}
{"Action":"fail","Package":"p"}
`,
			printed: "panic: boom\n",
			bad:     true,
		},
		{
			name: "packages without tests are not counted",
			in: `{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}
{"Action":"skip","Package":"p"}
`,
			want:   []string{"x: FAIL: 0 tests passed, 0 failed, 0 skipped in 0 packages\n"},
			refuse: []string{"no test files"},
			bad:    true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &report{out: &out, output: map[test][]string{}}
			if err := r.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			closing := strings.Join(r.lines, "") + r.closing("x", "")
			for _, part := range tt.want {
				if !strings.Contains(closing, part) {
					t.Errorf("closing lines = %q, want %q in them", closing, part)
				}
			}
			for _, part := range tt.refuse {
				if strings.Contains(closing, part) {
					t.Errorf("closing lines = %q, want no %q in them", closing, part)
				}
			}
			if !strings.Contains(out.String(), tt.printed) {
				t.Errorf("printed %q, want %q in it", out.String(), tt.printed)
			}
			if r.ok() == tt.bad {
				t.Errorf("ok = %t, want %t", r.ok(), !tt.bad)
			}
		})
	}
}
