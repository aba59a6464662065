package command

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/ctl/internal/follow"
	"github.com/spheroseg/muster/ctl/internal/output"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// secondInterrupt is how long a second Ctrl-C may take to mean: cancel the run.
const secondInterrupt = 2 * time.Second

// change holds the flags of commands that change something.
type change struct {
	dryRun       bool
	planHash     string
	detach       bool
	yes          bool
	reason       string
	requestID    string
	detailedExit bool
}

// requestFlags adds the flags of every changing call.
func (c *change) requestFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.requestID, "request-id", "", "id by which a repeated request is known; made if not given")
}

// runFlags adds the flags of commands whose effect is a run.
func (c *change) runFlags(cmd *cobra.Command) {
	c.requestFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&c.detach, "detach", false, "start the run and do not follow it")
	f.BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	f.StringVar(&c.reason, "reason", "", "why; it is kept with the run")
}

// planFlags adds the flags of commands that plan first.
func (c *change) planFlags(cmd *cobra.Command) {
	c.runFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&c.dryRun, "dry-run", false, "plan, show the plan and its hash, and change nothing")
	f.StringVar(&c.planHash, "plan", "", "start only the plan of this hash; it has been seen, so nothing is asked")
	c.exitFlag(cmd)
}

func (c *change) exitFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.detailedExit, "detailed-exitcode", false, "of a plan that is only shown: exit with 10 if it has changes")
}

// request settles the request id.
func (a *app) request(c *change) (string, error) {
	if len(c.requestID) > 64 {
		return "", output.Usage("--request-id ID", "--request-id has %d characters, more than 64", len(c.requestID))
	}
	if c.requestID == "" {
		id, err := uuid7(a.Now())
		if err != nil {
			return "", err
		}
		c.requestID = id
	}
	a.requestID = c.requestID
	return c.requestID, nil
}

// uuid7 returns an id that sorts by time (RFC 9562).
func uuid7(now time.Time) (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[6:]); err != nil {
		return "", err
	}
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-"), nil
}

// progressMode returns how a run is followed. Where the events are data, -o json decides.
func (a *app) progressMode(data bool) string {
	switch {
	case data && a.format == string(output.FormatJSON):
		return "json"
	case a.progress != "auto":
		return a.progress
	case a.terminal(a.progressOut(data)):
		return "tty"
	}
	return "plain"
}

// progressOut returns where the events of a run are written.
func (a *app) progressOut(data bool) io.Writer {
	if data {
		return a.Stdout
	}
	return a.Stderr
}

func (a *app) progressView(data bool) follow.View {
	out := a.progressOut(data)
	switch a.progressMode(data) {
	case "tty":
		return follow.NewLive(out, a.size(out), a.Now, a.style(out))
	case "json":
		if data {
			return follow.NewJSON(out, a.Stderr)
		}
		return follow.NewJSON(out, nil)
	case "quiet":
		return follow.NewQuiet(a.Stderr)
	}
	return follow.NewPlain(out, a.Stderr, a.Now)
}

// followed says how a run is followed to its end.
type followed struct {
	run *coordinatorv1.Run
	// id of the run where run is not known yet.
	id string
	// known says that the run exists for sure.
	known bool
	// data says that the events are what the command is for.
	data bool
	// cancelled says that the end that is wanted is CANCELLED.
	cancelled bool
	// pausedEnds ends the following of a run that is paused.
	pausedEnds bool
}

// follow follows a run to its end, says what happened, and returns the exit code as an error.
func (a *app) follow(ctx context.Context, f followed) error {
	if f.run != nil {
		f.id = f.run.GetId()
	}
	f.data = f.data && (a.table() || a.format == string(output.FormatJSON))
	a.learnPeers(ctx)
	state := follow.NewState(f.id)
	interrupts, restore := a.router.divert()
	defer restore()
	limit := ctx
	if a.timeoutSet {
		var cancel context.CancelFunc
		limit, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	for {
		err := follow.Run(limit, follow.Options{
			Runs: coordinatorv1.NewRunServiceClient(a.client), Client: a.client, View: a.progressView(f.data),
			Interrupts: interrupts, Known: f.known, PausedEnds: f.pausedEnds,
		}, state)
		switch {
		case err == nil:
			return a.ended(state, f)
		case errors.Is(err, follow.ErrDetached):
			if !a.wantsCancel(ctx, f.id, interrupts) {
				return output.Exit{Code: output.CodeDetached}
			}
			if err := a.cancel(ctx, f.id); err != nil {
				return err
			}
			f.known = true
		case errors.Is(err, follow.ErrPaused):
			a.note("run/%s is paused: %s", f.id, state.Run.GetCause())
			a.note("  musterctl run resume %s   goes on", f.id)
			a.note("  musterctl run cancel %s   takes it back", f.id)
			return output.Exit{Code: output.CodeDetached}
		case errors.Is(err, context.DeadlineExceeded):
			a.note("run/%s goes on after %s; %s", f.id, a.timeout, howTo(f.id))
			return output.Exit{Code: output.CodeDetached}
		case errors.Is(err, context.Canceled):
			a.detached(f.id)
			return output.Exit{Code: output.CodeDetached}
		default:
			return a.fail("run/"+f.id+" cannot be followed", err, map[string]string{"": "musterctl run watch " + f.id})
		}
	}
}

func howTo(id string) string {
	return "musterctl run watch " + id + " follows it, musterctl run cancel " + id + " takes it back"
}

func (a *app) detached(id string) {
	a.note("detached: run/%s goes on", id)
	a.note("  musterctl run watch %s    follows it", id)
	a.note("  musterctl run cancel %s   takes it back", id)
}

// wantsCancel gives a person two seconds for a second Ctrl-C, and then asks.
func (a *app) wantsCancel(ctx context.Context, id string, interrupts <-chan os.Signal) bool {
	a.clearEcho()
	a.detached(id)
	if !a.interactive() {
		return false
	}
	a.note("press Ctrl-C again within 2 s to cancel it")
	t := time.NewTimer(secondInterrupt)
	defer t.Stop()
	select {
	case <-interrupts:
		a.clearEcho()
		yes, err := a.ask(ctx, "cancel run/"+id+" and take back what it did?", interrupts)
		return yes && err == nil
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// cancel asks for the cancelling of a run that is being followed.
func (a *app) cancel(ctx context.Context, id string) error {
	request, err := uuid7(a.Now())
	if err != nil {
		return err
	}
	ctx, done := a.call(ctx)
	defer done()
	_, err = coordinatorv1.NewRunServiceClient(a.client).CancelRun(ctx, &coordinatorv1.CancelRunRequest{RunId: id, RequestId: request})
	return a.fail("run/"+id+" was not cancelled", err, nil)
}

// ended says what became of a run.
func (a *app) ended(s *follow.State, f followed) error {
	r := s.Run
	code, _ := output.CodeOfRun(r.GetState())
	if f.cancelled {
		code = output.CodeFailed
		if r.GetState() == coordinatorv1.RunState_RUN_STATE_CANCELLED {
			code = output.CodeDone
		}
	}
	machine := a.progressMode(f.data) == "json" // who reads JSON has seen the failures.
	if code != output.CodeDone && !machine {
		a.failures(s)
	}
	if !f.data || !machine {
		if err := a.printRun(r, endLine(r, a.Now())); err != nil {
			return err
		}
	}
	if code != output.CodeDone {
		if !machine {
			a.note("Hint:  musterctl run show %s", r.GetId())
		}
		return output.Exit{Code: code}
	}
	return nil
}

// failures shows which steps failed, and what was seen.
func (a *app) failures(s *follow.State) {
	for _, step := range s.Failed() {
		a.note("%s on %s: %s", step.GetStepId(), first(step.GetHost(), "-"), follow.Why(step))
		for _, line := range output.Lines(step.GetFailure().GetEvidence()) {
			a.note("    %s", line)
		}
	}
}

// printRun writes a run as the data of a command that changed something: one line for a person.
func (a *app) printRun(r *coordinatorv1.Run, line string) error {
	return a.printer().Print(output.Data{
		Kind: "Run", Items: []proto.Message{r}, Names: []string{"run/" + r.GetId()},
		Text: func(w io.Writer, _ bool) { _, _ = io.WriteString(w, output.Clean(line)+"\n") },
	})
}

// asBefore says what it means that a run was taken back.
func asBefore(r *coordinatorv1.Run) string {
	switch r.GetProcedure() {
	case "reload", "signal":
		return "a signal that was sent cannot be taken back"
	}
	return "everything is as before"
}

// endLine says what happened in one line.
func endLine(r *coordinatorv1.Run, now time.Time) string {
	line := "run/" + r.GetId() + " "
	switch r.GetState() {
	case coordinatorv1.RunState_RUN_STATE_SUCCEEDED:
		line += "succeeded"
		if n := r.GetActivateRelease(); n > 0 {
			line += sprintf(": release %d of stack %s is current", n, r.GetStack())
		}
	case coordinatorv1.RunState_RUN_STATE_ROLLED_BACK:
		line += "failed and was rolled back; " + asBefore(r)
	case coordinatorv1.RunState_RUN_STATE_CANCELLED:
		line += "was cancelled"
		if by := r.GetCancelledBy(); by != "" {
			line += " by " + who(by)
		}
		line += "; " + asBefore(r)
	case coordinatorv1.RunState_RUN_STATE_NEEDS_HUMAN:
		line += "needs a human: it stopped and keeps its locks (" + strings.Join(r.GetLocks(), ", ") + ")"
	default:
		line += output.Word(r.GetState(), "RUN_STATE_")
	}
	if c := r.GetCause(); c != "" && r.GetState() != coordinatorv1.RunState_RUN_STATE_SUCCEEDED && !strings.HasPrefix(c, "cancelled by ") {
		line += ": " + c
	}
	line += sprintf(" (%d of %d steps", r.GetStepsSettled(), r.GetStepsTotal())
	if r.GetCreatedAt() != nil {
		end := now
		if r.GetFinishedAt() != nil {
			end = r.GetFinishedAt().AsTime()
		}
		line += ", " + output.Span(end.Sub(r.GetCreatedAt().AsTime()))
	}
	return line + ")"
}
