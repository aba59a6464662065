package definition_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spheroseg/muster/coordinator/internal/definition"
)

// good is a procedure that there is nothing to say against. The cases change it in one place.
const good = `api: procedure/v1
name: good
title: A good one
max_duration: 4h
inputs:
  release: {type: string, required: true, pattern: "[0-9a-f]+"}
  names: {type: list, default: [a, b]}
  wait: {type: duration, default: 10s}
  tries: {type: int, default: 3, min: 1, max: 9}
  key: {type: secret}
targets:
  app: {labels: {role: app}}
  proxies: {proxy: true}
  web: {stack: shop, service: web}
  each: {stack: shop, service: "${each}"}
guard:
  risk: destructive
  locks: [stack/shop]
  approve_start: {prompt: "Go?", roles: [admin], count: 2, expires: 10m}
steps:
  - id: page
    on: proxies
    use: web.maintenance
    with: {routes: ["shop.*"], enabled: true, limit: "${inputs.wait}"}
    timeout: 30s
    undo: [{use: web.maintenance, with: {routes: ["shop.*"], enabled: false}, timeout: 30s}]
  - id: migrate
    on: web
    use: job.run
    with: {argv: [npm, run, "${inputs.release}"], secrets: {token: "${inputs.key}"}}
    timeout: 5m
    done_if: {use: probe.http, with: {url: "http://${target.port.8080}/"}, expression: result.status == 200 && result.body == inputs.release}
    if_unknown: probe
  - id: signal
    on: web
    use: container.signal
    with: {signal: SIGUSR1}
    timeout: 10s
    if_unknown: ask
  - id: restart
    for_each: "${inputs.names}"
    on: each
    use: service.restart
  - {id: rest, wait: 10s}
  - {id: sure, approve: {prompt: "Remove ${inputs.release}?", count: 1, expires: 5m}}
  - {id: remove, on: web, use: container.remove, timeout: 1m, irreversible: true, needs: [sure]}
  - id: look
    on: app
    use: probe.tcp
    with: {address: "${target.address}:22"}
    verify: result.open
    verify_for: 1m
`

// errors returns the codes of a text's findings.
func codesOf(text string) []string {
	var codes []string
	for _, f := range definition.Load("test.yaml", []byte(text)).Findings {
		codes = append(codes, f.GetCode())
	}
	return codes
}

func linesOf(text string) string {
	var lines []string
	for _, f := range definition.Load("test.yaml", []byte(text)).Findings {
		lines = append(lines, definition.Line(f))
	}
	return strings.Join(lines, "\n")
}

func TestGoodProcedure(t *testing.T) {
	if lines := linesOf(good); lines != "" {
		t.Errorf("findings:\n%s", lines)
	}
}

// TestLint: each code has a change that makes it fire, and one, next to it, that does not.
func TestLint(t *testing.T) {
	for _, tc := range []struct {
		name, code string
		old        string // what is replaced in the good procedure
		fires      string
		has        string // what the message says
		fine       string // what it can be replaced by without a word; empty for another case of the same code
	}{
		{"no YAML", "Y001", "api: procedure/v1", "api: [", "", "api: 'procedure/v1'"},
		{"anchor", "Y001", "name: good", "name: &x good", "anchors", "name: 'good'"},
		{"tag", "Y001", "name: good", "name: !!str good", "tags", ""},
		{"two documents", "Y001", "api: procedure/v1\n", "api: procedure/v1\n---\n", "second document", "---\napi: procedure/v1\n"},
		{"unknown field", "Y002", "max_duration: 4h", "max_durations: 4h", "did you mean max_duration?", "max_duration: 240m"},
		{"unknown field of a step", "Y002", "timeout: 30s\n", "time_out: 30s\n", "did you mean timeout?", "timeout: 31s\n"},
		{"a section that is not there", "Y002", "steps:", "on_failure: []\nsteps:", "on_failure", ""},
		{"duplicate key", "Y003", "title: A good one", "title: A good one\ntitle: Another", "first on line 3", "title: Another"},
		{"duration without unit", "Y004", "max_duration: 4h", "max_duration: 14400", "unit", "max_duration: 14400s"},
		{"enum", "Y004", "risk: destructive", "risk: destructiv", "did you mean destructive?", "risk: DESTRUCTIVE"},
		{"bool", "Y004", "proxy: true", "proxy: yes", "true or false", ""},
		{"name of a built-in", "Y004", "name: good", "name: restart", "another name", "name: restarts"},
		{"null", "Y004", "owner:", "owner:", "", ""},
		{"lock", "Y004", "locks: [stack/shop]", "locks: [stack/shop, 'a b']", "lock", "locks: [stack/shop, db/shop]"},
		{"continue", "Y004", "max_duration: 4h", "max_duration: 4h\non_deadline: continue", "rollback or pause", "max_duration: 4h\non_deadline: pause"},
		{"role that may not answer", "Y004", "roles: [admin]", "roles: [viewer]", "may not answer", "roles: [admin, service]"},
		{"retry", "Y004", "if_unknown: ask", "if_unknown: ask\n    retry: {attempts: 1}", "2 or more", "if_unknown: ask\n    retry: {attempts: 2, delay: 1s, backoff: 2}"},
		{"wave", "Y004", "if_unknown: ask", "if_unknown: ask\n    rollout: {waves: ['0']}", "wave", "if_unknown: ask\n    rollout: {waves: [1, 25%, 100%], max_failed: 10%, pause: 5s}"},
		{"missing title", "Y005", "title: A good one", "title: ''", "title", "title: Another"},
		{"no risk", "Y005", "  risk: destructive\n", "", "guard.risk", ""},
		{"target of nothing", "Y005", "app: {labels: {role: app}}", "app: {}", "selects nothing", "app: {hosts: [h1, h2]}"},
		{"no step id", "Y005", "{id: rest, wait: 10s}", "{wait: 10s}", "step id", "{id: rest, wait: 11s}"},
		{"two acts", "Y006", "{id: rest, wait: 10s}", "{id: rest, wait: 10s, approve: {prompt: x}}", "one thing", ""},
		{"too many steps", "Y006", "  - {id: rest, wait: 10s}\n", manySteps(200), "more than 200", manySteps(150)},
		{"a wait with a target", "Y006", "{id: rest, wait: 10s}", "{id: rest, wait: 10s, on: web}", "no action", "{id: rest, wait: 10s, needs: [page]}"},
		{"secret with a default", "Y006", "key: {type: secret}", "key: {type: secret, default: x}", "no default", "key: {type: secret, required: true}"},
		{"verify_for alone", "Y006", "    verify: result.open\n", "", "nothing to ask again", ""},
		{"no such action", "A001", "use: web.maintenance\n", "use: web.maintenence\n", "did you mean web.maintenance?", ""},
		{"unknown argument", "A002", "with: {signal: SIGUSR1}", "with: {signal: SIGUSR1, sygnal: x}", "did you mean signal?", "with: {signal: SIGHUP}"},
		{"argument that is the compiler's", "A002", "with: {signal: SIGUSR1}", "with: {signal: SIGUSR1, name: web.1}", "no field \"name\"", ""},
		{"missing argument", "A003", "    with: {signal: SIGUSR1}\n", "", "needs signal", ""},
		{"empty argv", "A003", `argv: [npm, run, "${inputs.release}"]`, "argv: []", "needs argv", "argv: [npm]"},
		{"hosts where a service is meant", "A004", "on: web\n    use: job.run", "on: app\n    use: job.run", "acts on a service", ""},
		{"times of several steps", "A004", "use: service.restart", "use: service.restart\n    timeout: 1m", "remove timeout", "use: service.restart\n    with: {delay: 1m}"},
		{"a question that changes", "A004", "done_if: {use: probe.http, with: {url: \"http://${target.port.8080}/\"}", "done_if: {use: container.stop", "must not", ""},
		{"done_if of the action itself", "A004", "if_unknown: ask", "if_unknown: ask\n    done_if: 'true'", "before", ""},
		{"an answer that stays what it is", "A004", "    if_unknown: probe\n", "    if_unknown: probe\n    verify: result.exit_code == 0\n    verify_for: 1m\n", "not done again", "    if_unknown: probe\n    verify: result.exit_code == 0\n"},
		{"undeclared name", "C001", "verify: result.open", "verify: probe.open", "undeclared", "verify: result.open == true"},
		{"field that the answer has not", "C001", "verify: result.open", "verify: result.opened", "did you mean open?", ""},
		{"unknown input", "C001", `[npm, run, "${inputs.release}"]`, `[npm, run, "${inputs.releese}"]`, "did you mean release?", `[npm, run, "${inputs.tries}"]`},
		{"each without for_each", "C001", `prompt: "Remove ${inputs.release}?"`, `prompt: "Remove ${each}?"`, "for_each", ""},
		{"target of a host", "C001", "${target.address}:22", "${target.port.22}", "it has address, host", "${target.host}:22"},
		{"expression of another type", "C002", "verify: result.open", "verify: result.error", "bool", ""},
		{"compares a text with a number", "C002", "result.body == inputs.release", "result.body == inputs.tries", "overload", "int(result.status) == inputs.tries"},
		{"a text where a time is meant", "C002", `limit: "${inputs.wait}"`, `limit: "${inputs.release}"`, "is no time", "limit: 3h"},
		{"default that does not fit", "C002", "default: 3, min: 1", "default: 30, min: 1", "more than 9", "default: 4, min: 1"},
		{"reference where none is taken", "C003", "timeout: 10s", `timeout: "${inputs.wait}"`, "before a run is planned", "timeout: 11s"},
		{"reference in an expression", "C003", "verify: result.open", "verify: \"${inputs.release} == ''\"", "without ${", "verify: inputs.release != '' && result.open"},
		{"id twice", "P001", "{id: rest, wait: 10s}", "{id: page, wait: 10s}", "twice", "{id: pages, wait: 10s}"},
		{"needs a later step", "P002", "{id: rest, wait: 10s}", "{id: rest, wait: 10s, needs: [look]}", "does not come before", "{id: rest, wait: 10s, needs: [page, signal]}"},
		{"needs no step", "P002", "needs: [sure]", "needs: [shure]", "did you mean sure?", "needs: [sure, page]"},
		{"no such target", "P003", "on: proxies", "on: proxis", "did you mean proxies?", ""},
		{"no target", "P004", "    on: web\n    use: container.signal", "    use: container.signal", "needs a target", ""},
		{"once only, and nothing tells", "D001", "    if_unknown: ask\n", "", "done twice", "    if_unknown: stop\n"},
		{"repeat of what is once only", "D002", "if_unknown: ask", "if_unknown: repeat", "would", ""},
		{"probe without done_if", "D003", "if_unknown: ask", "if_unknown: probe", "has none", ""},
		{"change without timeout", "D004", "    timeout: 10s\n", "", "no timeout", "    timeout: 1m\n"},
		{"undo without timeout", "D004", "enabled: false}, timeout: 30s}", "enabled: false}}", "no timeout", "enabled: false}, timeout: 31s}"},
		{"irreversible, and not destructive", "U001", "risk: destructive", "risk: disruptive", "guard.risk", ""},
		{"risk understated", "U001", "risk: destructive", "risk: change", "disruptive", ""},
		{"takes away and does not say so", "U003", ", irreversible: true", "", "irreversible: true", ""},
		{"irreversible with undo", "U004", "irreversible: true", "irreversible: true, undo: [{use: container.start, timeout: 1m}]", "one of them", ""},
		{"no lock", "G001", "locks: [stack/shop]", "locks: []", "takes no lock", ""},
		{"another lock", "G001", "locks: [stack/shop]", "locks: [stack/ship]", "stack/shop", "locks: [stack/shop, stack/ship]"},
		{"one person for a destructive one", "G002", "count: 2", "count: 1", "two people", "count: 3"},
		{"value in a shell's command", "S001", `argv: [npm, run, "${inputs.release}"]`, `argv: [sh, -c, "npm run ${inputs.release}"]`, "$1", `argv: [sh, -c, 'npm run "$1"', sh, "${inputs.release}"]`},
		{"value in a shell's command, options together", "S001", `argv: [npm, run, "${inputs.release}"]`, `argv: [/bin/bash, -euc, "npm run ${inputs.release}"]`, "$1", `argv: [/bin/bash, -euc, "npm run $${inputs.release}"]`},
		{"secret as an argument", "S002", `argv: [npm, run, "${inputs.release}"]`, `argv: [npm, run, "${inputs.key}"]`, "with.secrets", ""},
		{"secret in a question", "S002", `prompt: "Remove ${inputs.release}?"`, `prompt: "Remove ${inputs.key}?"`, "SECRET", ""},
		{"verify once", "R001", "    verify_for: 1m\n", "", "verify_for", "    verify_for: 2m\n"},
		{"more than the run may take", "T001", "max_duration: 4h", "max_duration: 15m", "more than max_duration", "max_duration: 1h"},
	} {
		t.Run(tc.code+" "+tc.name, func(t *testing.T) {
			if tc.name == "null" {
				tc.old, tc.fires = "title: A good one", "title: A good one\nowner:"
				tc.fine = "title: A good one\nowner: ops"
			}
			text := strings.Replace(good, tc.old, tc.fires, 1)
			if text == good {
				t.Fatalf("the good procedure has no %q", tc.old)
			}
			if codes := codesOf(text); !slices.Contains(codes, tc.code) {
				t.Errorf("%s does not fire:\n%s", tc.code, linesOf(text))
			}
			if lines := linesOf(text); !strings.Contains(lines, tc.has) {
				t.Errorf("no message says %q:\n%s", tc.has, lines)
			}
			if tc.fine == "" {
				return
			}
			if lines := linesOf(strings.Replace(good, tc.old, tc.fine, 1)); lines != "" {
				t.Errorf("%q is fine, and was found:\n%s", tc.fine, lines)
			}
		})
	}
}

func manySteps(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  - {id: rest%d, wait: 1s}\n", i)
	}
	return b.String()
}

// TestApprovalBeforeTheIrreversible stands alone: both approvals of the good procedure have to go.
func TestApprovalBeforeTheIrreversible(t *testing.T) {
	text := strings.Replace(good, "  approve_start: {prompt: \"Go?\", roles: [admin], count: 2, expires: 10m}\n", "", 1)
	if codes := codesOf(text); slices.Contains(codes, "U002") {
		t.Errorf("an approve right before suffices:\n%s", linesOf(text))
	}
	text = strings.Replace(text, "  - {id: sure, approve: {prompt: \"Remove ${inputs.release}?\", count: 1, expires: 5m}}\n", "", 1)
	text = strings.Replace(text, ", needs: [sure]", "", 1)
	if codes := codesOf(text); !slices.Contains(codes, "U002") {
		t.Errorf("U002 does not fire:\n%s", linesOf(text))
	}
}

// TestPositions: a finding is where an editor jumps to.
func TestPositions(t *testing.T) {
	text := strings.Replace(good, "enabled: true", "enabeld: true", 1)
	want := "test.yaml:24:32: error A002: steps[0].with has no field \"enabeld\"; did you mean enabled?"
	if lines := linesOf(text); !strings.Contains(lines, want) {
		t.Errorf("want %s, got\n%s", want, lines)
	}
}

// TestSeedRestore reads the runbook's restore as somebody would write it down word for word. Databases have no actions yet; what can be said without
// them is said.
func TestSeedRestore(t *testing.T) {
	lines := linesOf(`api: procedure/v1
name: restore
title: Restore the database from a backup
max_duration: 6h
inputs:
  backup: {type: string, required: true}
targets:
  app: {stack: spheroseg, service: backend}
guard:
  risk: destructive
  locks: [stack/spheroseg]
  approve_start: {prompt: "Restore?", count: 1}
steps:
  - {id: stop, on: app, use: container.stop}
  - {id: tell, on: app, use: container.signal, with: {signal: SIGTERM}, timeout: 10s}
  - {id: load, on: app, use: job.run, with: {argv: [sh, -c, "gunzip -c ${inputs.backup} | psql spheroseg"]}, timeout: 1h}
  - {id: drop, on: app, use: container.remove, timeout: 1m}
  - {id: swap, on: app, use: pg.swap, timeout: 1m}
`)
	for _, want := range []string{
		":10:3: error G002", ":14:5: error D004", ":15:5: error D001", ":17:5: error U003", "error S001", "error A001: there is no action \"pg.swap\"",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("no %s:\n%s", want, lines)
		}
	}
}

// FuzzLoad: whatever a file holds, reading it ends, and every finding has a place.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(good))
	for _, seed := range []string{"", "a", "api: [", "a: &a [*a]", "steps: [{use: job.run, with: [1]}]", "targets: {a: {labels: 1}}", "inputs: {a: {type: list, default: {}}}", "steps: [{id: a, for_each: {}, use: x, verify: []}]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		d := definition.Load("fuzz.yaml", source)
		for _, finding := range d.Findings {
			if finding.GetLine() == 0 || finding.GetColumn() == 0 || finding.GetCode() == "" || finding.GetMessage() == "" {
				t.Errorf("finding without place, code or message: %v", finding)
			}
		}
	})
}
