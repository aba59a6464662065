package hosts_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spheroseg/muster/coordinator/internal/hosts"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestAwaitWaitsOnlyForHostsThatAreUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hosts.New(hosts.Options{States: func() map[string]*coordinatorv1.Host {
			return map[string]*coordinatorv1.Host{
				"up":   {Name: "up", State: coordinatorv1.HostState_HOST_STATE_UP},
				"down": {Name: "down", State: coordinatorv1.HostState_HOST_STATE_DOWN},
			}
		}})
		for host, wait := range map[string]time.Duration{"up": 6 * time.Second, "down": 0, "unknown": 0} {
			start := time.Now()
			if _, err := h.Await(context.Background(), host); !errors.Is(err, hosts.ErrNotConnected) {
				t.Errorf("%s: %v", host, err)
			}
			if got := time.Since(start); got != wait {
				t.Errorf("%s was waited for %s, want %s", host, got, wait)
			}
		}
	})
}
