package cluster

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// stalled is a pipeline as raft leaves it when nobody reads the answers any more: only its end frees the sender.
type stalled struct {
	raft.AppendPipeline

	once   sync.Once
	closed chan struct{}
}

func (s *stalled) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-s.closed
	return nil, raft.ErrPipelineShutdown
}

func (s *stalled) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func TestStalledPipelineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, inner := time.Now(), &stalled{closed: make(chan struct{})}
		_, err := pipeline{inner}.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
		if waited := time.Since(began); err == nil || waited != pipelineTimeout {
			t.Errorf("error %v after %v, want the end of the pipeline after %v", err, waited, pipelineTimeout)
		}
	})
}
