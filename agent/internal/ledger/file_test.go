package ledger_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/agent/internal/ledger"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// written returns a ledger file that holds n operations that have ended, a frame each for ACCEPTED and FINISHED.
func written(t *testing.T, n int) (path string, offsets []int) {
	t.Helper()
	path = file(t)
	l := open(t, path, ledger.Tuning{})
	for i := range n {
		if _, err := l.Do(context.Background(), operation(fmt.Sprint("op", i)), method, idempotent, left(uint32(i))); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	offsets, err := ledger.FrameOffsets(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(offsets) != 2*n+1 {
		t.Fatalf("%d operations took %d frames, want %d", n, len(offsets)-1, 2*n)
	}
	return path, offsets
}

func TestATornEndIsCutOff(t *testing.T) {
	path, offsets := written(t, 3)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last, end := offsets[len(offsets)-2], offsets[len(offsets)-1]
	damage := map[string]func() []byte{
		"zeros where the data should be": func() []byte {
			return append(append([]byte{}, whole[:last]...), make([]byte, end-last)...)
		},
		"garbage": func() []byte {
			return append(append([]byte{}, whole[:last]...), strings.Repeat("MLF1\xff\xff", 100)...)
		},
	}
	for at := last + 1; at < end; at++ {
		damage[fmt.Sprintf("cut at %d", at)] = func() []byte { return whole[:at] }
	}
	for name, damaged := range damage {
		t.Run(name, func(t *testing.T) {
			path := file(t)
			if err := os.WriteFile(path, damaged(), 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, path, ledger.Tuning{})
			for i := range 2 {
				response, err := l.Do(context.Background(), operation(fmt.Sprint("op", i)), method, idempotent, never(t))
				wantLeft(t, response, err, uint32(i))
			}
			// The torn frame held the outcome of the last operation: it was told to nobody, and is found again by acting again.
			response, err := l.Do(context.Background(), operation("op2"), method, idempotent, left(22))
			wantLeft(t, response, err, 22)
			shut(t, l)
			l = open(t, path, ledger.Tuning{})
			response, err = l.Do(context.Background(), operation("op2"), method, idempotent, never(t))
			wantLeft(t, response, err, 22)
		})
	}
}

func TestDamageInTheMiddleStopsTheStart(t *testing.T) {
	path, offsets := written(t, 3)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := offsets[len(offsets)-2]
	for at := range last {
		damaged := append([]byte{}, whole...)
		damaged[at] ^= 0x55
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		frame := 0
		for _, o := range offsets {
			if o <= at {
				frame = o
			}
		}
		_, err := ledger.Open(ledger.Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			t.Fatalf("a ledger with a damaged byte at %d was opened", at)
		}
		if want := fmt.Sprintf("offset %d", frame); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Fatalf("damage at %d: got %q, want the file and %q in it", at, err, want)
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(damaged) {
			t.Fatalf("the damaged file was changed (%v)", err)
		}
	}
}

func TestOldOperationsAreForgottenAtTheStart(t *testing.T) {
	path := file(t)
	synctest.Test(t, func(t *testing.T) {
		do := func(l *ledger.Ledger, id string, act ledger.Act) {
			t.Helper()
			op := operation(id)
			op.Epoch = 4
			if _, err := l.Do(t.Context(), op, method, idempotent, act); err != nil {
				t.Fatal(err)
			}
		}
		l := open(t, path, ledger.Tuning{})
		do(l, "old", left(1))
		<-time.NewTimer(6 * 24 * time.Hour).C
		do(l, "young", left(1))
		<-time.NewTimer(36 * time.Hour).C
		shut(t, l)
		before := size(t, path)

		l = open(t, path, ledger.Tuning{})
		if got := ids(l); got != "young" {
			t.Errorf("got operations %q, want young", got)
		}
		if after := size(t, path); after >= before {
			t.Errorf("the file has %d bytes after its compaction, %d before", after, before)
		}
		do(l, "young", never(t))
		do(l, "new", left(1))
		shut(t, l)

		// The count bounds what is kept of the past, but not of the last hour.
		l = open(t, path, ledger.Tuning{KeepCount: 1})
		if got := ids(l); got != "new" {
			t.Errorf("got operations %q, want new: young ended a day and a half ago", got)
		}
		do(l, "newer", left(1))
		shut(t, l)

		l = open(t, path, ledger.Tuning{KeepCount: 1})
		if got := ids(l); got != "newer new" {
			t.Errorf("got operations %q, want newer and new", got)
		}
		if _, err := l.Do(t.Context(), &agentv1.Operation{Id: "x", Epoch: 3}, method, none, left(1)); err == nil {
			t.Error("the epoch was forgotten")
		}
		shut(t, l)
	})
}

func TestCompactionWhileOperationsRun(t *testing.T) {
	path := file(t)
	const limit = 8 << 10
	l := open(t, path, ledger.Tuning{CompactAbove: limit, KeepCount: 20, KeepRecent: time.Nanosecond})
	proceed := make(chan struct{})
	var runners sync.WaitGroup
	runners.Go(func() {
		response, err := l.Do(context.Background(), operation("long"), method, once, func(context.Context) (proto.Message, error) {
			<-proceed
			return &agentv1.DrainContainerResponse{Left: 5}, nil
		})
		wantLeft(t, response, err, 5)
	})
	for w := range 8 {
		runners.Go(func() {
			for i := range 100 {
				op := operation(fmt.Sprintf("w%d/%d", w, i))
				effect := idempotent
				if i%3 == 0 {
					effect = none
				}
				response, err := l.Do(context.Background(), op, method, effect, left(uint32(i)))
				wantLeft(t, response, err, uint32(i))
			}
			if w == 7 {
				close(proceed)
			}
		})
	}
	runners.Wait()
	response, err := l.Do(context.Background(), operation("last"), method, idempotent, left(9))
	wantLeft(t, response, err, 9)
	want := strings.Fields(ids(l))[:10]
	shut(t, l)
	// 800 operations take far more; one limit plus what the last round added is left.
	if got := size(t, path); got > 3*limit {
		t.Errorf("the file has %d bytes after %d operations", got, 800)
	}
	l = open(t, path, ledger.Tuning{})
	got := strings.Fields(ids(l))
	for _, id := range want {
		if !slices.Contains(got, id) {
			t.Errorf("operation %s was forgotten; there are %v", id, got)
		}
	}
	for _, id := range got {
		if _, err := l.Do(context.Background(), operation(id), method, idempotent, never(t)); err != nil {
			t.Errorf("operation %s: %v", id, err)
		}
	}
}

func ids(l *ledger.Ledger) string {
	var ids []string
	for _, e := range l.List("", 1000) {
		ids = append(ids, e.GetOperationId())
	}
	return strings.Join(ids, " ")
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
