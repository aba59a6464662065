package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	certificate "github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

const (
	callLimit = 3 * time.Second // for one attempt at one coordinator: one that is paused or cut off does not answer
	callPause = 5 * time.Millisecond
)

// Client calls the coordinators as the operator who is logged in, without a process for each call. A call goes from one coordinator to the next, with the
// same request and so the same request id, until one gives a definite answer. It is a grpc.ClientConnInterface, for unary calls.
type Client struct {
	conns []*grpc.ClientConn
	next  atomic.Uint32
}

// Dial returns a client of all coordinators.
func (m *Muster) Dial() (*Client, error) {
	dir, err := m.keys()
	if err != nil {
		return nil, err
	}
	creds, err := certificate.LoadCredentials(dir)
	if err != nil {
		return nil, err
	}
	config := mtls.Client(creds, accessv1.Role_ROLE_COORDINATOR, mtls.ALPNgRPC)
	c := &Client{}
	m.f.OnClose("client", func(context.Context) error { return c.Close() })
	for _, at := range m.Coordinators {
		if err := c.add(at.Endpoint(), config); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Client) add(endpoint string, config *tls.Config) error {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: callLimit,
		}))
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return err
}

// keys is the folder with the operator's certificate.
func (m *Muster) keys() (string, error) {
	for _, entry := range m.Env {
		state, ok := strings.CutPrefix(entry, "XDG_STATE_HOME=")
		if !ok {
			continue
		}
		found, err := filepath.Glob(filepath.Join(state, "musterctl", "*", "identity.crt"))
		if err != nil || len(found) != 1 {
			return "", fmt.Errorf("certificate below %s: found %v, want one: %w", state, found, err)
		}
		return filepath.Dir(found[0]), nil
	}
	return "", errors.New("fleet: nobody is logged in")
}

// Close ends the connections.
func (c *Client) Close() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// Invoke makes the call until there is a definite answer or ctx ends.
func (c *Client) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	for {
		i := c.next.Load()
		limited, cancel := context.WithTimeout(ctx, callLimit)
		err := c.conns[int(i)%len(c.conns)].Invoke(limited, method, args, reply, opts...)
		cancel()
		if err == nil || !again(err) {
			return err
		}
		c.next.CompareAndSwap(i, i+1)
		pause := time.NewTimer(callPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%s: %w: %w", method, ctx.Err(), err)
		}
	}
}

// again says that the error leaves the outcome open, or that another coordinator may know better.
func again(err error) bool {
	switch rpcerr.Reason(err) {
	case "NO_LEADER", "NOT_LEADER", "OUTCOME_UNKNOWN", "STALE":
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// NewStream opens a stream to the coordinator that answered last; nothing is repeated.
func (c *Client) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.conns[int(c.next.Load())%len(c.conns)].NewStream(ctx, desc, method, opts...)
}
