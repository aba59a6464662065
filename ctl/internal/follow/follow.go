// Package follow owns watching a run until it ends: across broken connections, live on a terminal or line by line. Starting,
// cancelling and exit codes are the commands' concern.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/ctl/internal/client"
	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// patience is how long a run is looked for on any coordinator before the follower gives up. The run itself goes on.
const patience = 2 * time.Minute

// View shows a run. Its methods are called one at a time.
type View interface {
	// Update shows what an answer changed; it is part of s already.
	Update(s *State, answer *coordinatorv1.WatchRunResponse)
	// Notice shows a line that does not come from the run.
	Notice(line string)
	// Tick lets ages move on.
	Tick(s *State)
	// Close leaves the terminal in order.
	Close(s *State)
}

// Options of Run.
type Options struct {
	// Runs is where the run is watched. Required.
	Runs coordinatorv1.RunServiceClient
	// Client moves on when a coordinator fails. Required.
	Client *client.Client
	// View shows the run. Required.
	View View
	// Interrupts are the signals that mean: stop following.
	Interrupts <-chan os.Signal
	// Known says that the run exists for sure: a coordinator that does not know it yet is behind.
	Known bool
	// PausedEnds ends the following of a run that is paused: whoever started it is asked, and does not wait.
	PausedEnds bool
	// Patience with a run that no coordinator shows; 0 means two minutes.
	Patience time.Duration
}

// ErrDetached is returned when an interrupt ended the following.
var ErrDetached = errors.New("follow: detached")

// ErrPaused is returned when the run is paused, if that ends the following.
var ErrPaused = errors.New("follow: paused")

// Run follows a run from s on until it ends, needs a human, or an interrupt or ctx ends the following. State s is kept up to
// date, so that another Run can resume with it.
func Run(ctx context.Context, o Options, s *State) error {
	if o.Patience == 0 {
		o.Patience = patience
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan *coordinatorv1.WatchRunResponse)
	notices := make(chan string)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(answers)
		return read(ctx, o, s.RunID, s.Index, answers, notices)
	})
	err := show(o, s, answers, notices)
	o.View.Close(s)
	cancel()
	readErr := group.Wait()
	if err != nil || s.Settled() {
		return err
	}
	return readErr
}

// show is the loop that owns the view. It ends with answers, at the latest.
func show(o Options, s *State, answers <-chan *coordinatorv1.WatchRunResponse, notices <-chan string) error {
	tick := time.NewTicker(2 * redraw)
	defer tick.Stop()
	for {
		select {
		case answer, ok := <-answers:
			if !ok {
				return nil
			}
			s.Apply(answer)
			o.View.Update(s, answer)
			if s.Settled() {
				return nil
			}
			if o.PausedEnds && s.Run.GetState() == coordinatorv1.RunState_RUN_STATE_PAUSED {
				return ErrPaused
			}
		case line := <-notices:
			o.View.Notice(line)
		case <-tick.C:
			o.View.Tick(s)
		case <-o.Interrupts:
			return ErrDetached
		}
	}
}

// read sends the answers of whichever coordinator shows the run, each index once, until the run's stream ends for good.
func read(ctx context.Context, o Options, runID string, index uint64, answers chan<- *coordinatorv1.WatchRunResponse, notices chan<- string) error {
	lost := time.Time{}
	from := ""
	for {
		server := o.Client.Server()
		err := stream(ctx, o.Runs, runID, index, func(answer *coordinatorv1.WatchRunResponse) error {
			if !lost.IsZero() {
				lost = time.Time{}
				if err := send(ctx, notices, fmt.Sprintf("connection to %s was lost, following run/%s on %s", from, runID, server)); err != nil {
					return err
				}
			}
			index = max(index, answer.GetIndex())
			return send(ctx, answers, answer)
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return nil
		case hasDeadline(ctx) && status.Code(err) == codes.DeadlineExceeded:
			return context.DeadlineExceeded // the coordinator knows our deadline, and its clock was a little faster.
		case rpcerr.Reason(err) == "COMPACTED" && index > 0:
			index = 0 // the run is sent anew, from its start.
			continue
		case !transient(err, o.Known || index > 0):
			return err
		}
		if lost.IsZero() {
			lost, from = time.Now(), server
		}
		if time.Since(lost) > o.Patience {
			return err
		}
		o.Client.Leave(err)
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// stream reads one stream to its end. It returns nil only if the run has settled: a stream that just ends is a broken one.
func stream(ctx context.Context, runs coordinatorv1.RunServiceClient, runID string, index uint64,
	each func(*coordinatorv1.WatchRunResponse) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, err := runs.WatchRun(ctx, &coordinatorv1.WatchRunRequest{RunId: runID, FromIndex: index})
	if err != nil {
		return err
	}
	for {
		answer, err := answers.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Unavailable, "the coordinator ended the stream before the run ended")
		}
		if err != nil {
			return err
		}
		if err := each(answer); err != nil {
			return err
		}
		if r := answer.GetRun(); r != nil && settled(r.GetState()) {
			return nil
		}
	}
}

func hasDeadline(ctx context.Context) bool {
	_, ok := ctx.Deadline()
	return ok
}

func transient(err error, known bool) bool {
	if client.Retryable(err) {
		return true
	}
	switch status.Code(err) {
	case codes.NotFound:
		return known
	case codes.Internal, codes.Unknown, codes.Canceled, codes.ResourceExhausted:
		return known // a coordinator that stops, or a stream that was cut in the middle of a message.
	}
	return false
}

func settled(s coordinatorv1.RunState) bool {
	_, ok := output.CodeOfRun(s)
	return ok
}

func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
