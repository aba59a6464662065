package cluster

import (
	"time"

	"github.com/hashicorp/raft"
)

// pipelineTimeout is how long a message may wait for its turn on a pipeline. An answer is waited for no longer than transportTimeout, so a
// turn that has not come by then never comes.
const pipelineTimeout = 2 * transportTimeout

// transport is raft's, with pipelines that cannot stall.
type transport struct {
	*raft.NetworkTransport
}

// AppendEntriesPipeline returns a pipeline that ends when it stalls.
func (t transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return pipeline{inner}, nil
}

// pipeline ends when it stalls. In raft 1.8.0 the reader of the answers leaves at a refusal or a newer term, and the sender may hand over one more
// message before it looks whether the reader is there: both then wait for ever, the follower gets no more of the log from this leader, and
// the shutdown of raft never ends. Closing the pipeline ends the wait, and raft goes on without it.
type pipeline struct {
	raft.AppendPipeline
}

// AppendEntries sends a message.
func (p pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stalled := time.AfterFunc(pipelineTimeout, func() { _ = p.Close() }) // the sender sees the end
	defer stalled.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}
