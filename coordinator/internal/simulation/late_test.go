package simulation

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/coordinator/internal/runbook"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// TestLateCallIsNotTakenForWhatWasThere lets the call of a former leader arrive at the worst moment: after the next one has asked the host whether it
// knows the operation, and before it asks whether the step is done already. What that call did would look as if it had been there before the
// run, and a rollback would leave it.
func TestLateCallIsNotTakenForWhatWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, 1, temper{}, bugs{})
		s.found()
		first, host := s.leader().name, s.hosts[0].name
		me, others := []string{first}, slices.DeleteFunc(slices.Clone(s.names), func(n string) bool { return n == first })
		var cutOff, arrived sync.Once
		s.wire.gate = func(from, method string) {
			switch {
			case from == first && strings.HasSuffix(method, "/StartContainer"):
				cutOff.Do(func() { // The call goes out, and is held on the wire with all that this leader says or hears.
					s.wire.set(me, s.everybody(), true)
					s.wire.set(s.everybody(), me, true)
				})
			case from != first && strings.HasSuffix(method, "/InspectContainer"):
				arrived.Do(func() {
					s.wire.set(me, []string{host}, false)
					rest(context.Background(), 3*time.Second)
				})
			}
		}
		start := &coordinatorv1.Step{
			Id: "start", Title: "start", Host: host, Timeout: durationpb.New(20 * time.Second), DoneIf: runs("x"),
			Action: action("StartContainer", &agentv1.StartContainerRequest{Name: "x"}),
			Undo:   []*coordinatorv1.Undo{{Title: "stop", Action: action("StopContainer", &agentv1.StopContainerRequest{Name: "x"}), Timeout: durationpb.New(20 * time.Second)}},
		}
		broken := &coordinatorv1.Step{
			Id: "broken", Title: "broken", Host: host, After: []string{"start"}, Timeout: durationpb.New(time.Second), Action: &coordinatorv1.Action{Method: "none/None"},
		}
		plan := &coordinatorv1.Plan{Procedure: "simulated", Title: "late", Steps: []*coordinatorv1.Step{start, broken}, MaxDuration: durationpb.New(time.Hour)}
		if err := runbook.Seal(plan); err != nil {
			t.Fatal(err)
		}
		command := &raftv1.Command{Actor: "ann", Op: &raftv1.Command_StartRun{StartRun: &raftv1.StartRun{Plan: plan}}}
		result, _, err := s.node(first).cluster.Propose(context.Background(), command)
		if err != nil || result.GetError() != nil {
			t.Fatalf("start a run: %v %v", err, result.GetError())
		}
		id := result.GetRun().GetId()
		s.until("the run is taken back", 2*time.Minute, func() bool {
			return s.node(others[0]).state.View().Run(id).GetState() == coordinatorv1.RunState_RUN_STATE_ROLLED_BACK
		})
		s.wire.heal()
		rest(context.Background(), 5*time.Second)
		s.end()
		e := &evidence{}
		e.collect(s)
		if !slices.ContainsFunc(e.facts, func(f fact) bool { return f.deed == refused && strings.HasSuffix(f.op, "/start/1") }) {
			t.Errorf("the late call was not turned away: %v", e.facts)
		}
		for _, c := range []string{"seen at once", "performed once", "taken back whole", "every run ends"} {
			e.settled = true
			for _, found := range e.judge(c) {
				t.Errorf("%s: %s", c, found)
			}
		}
	})
}
