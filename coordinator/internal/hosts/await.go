package hosts

import (
	"context"
	"time"

	"google.golang.org/grpc"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// awaitTime is a little more than an agent takes at most between two tries to reach a coordinator that was away.
const awaitTime = 6 * time.Second

// Await returns the connection to a host's agent. A host that the state calls up is waited for: this coordinator may have started a moment
// ago, and the host is about to come back to it. For any other host it answers as Conn does.
func (h *Hosts) Await(ctx context.Context, host string) (grpc.ClientConnInterface, error) {
	ctx, cancel := context.WithTimeout(ctx, awaitTime)
	defer cancel()
	for {
		changed := h.Changed()
		cc, err := h.Conn(host)
		if err == nil || !h.calledUp(host) {
			return cc, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// calledUp says that the leader has a connection to the host, as far as this coordinator knows.
func (h *Hosts) calledUp(host string) bool {
	if h.opts.States == nil {
		return false
	}
	switch h.opts.States()[host].GetState() {
	case coordinatorv1.HostState_HOST_STATE_UP, coordinatorv1.HostState_HOST_STATE_ENGINE_DOWN:
		return true
	}
	return false
}
