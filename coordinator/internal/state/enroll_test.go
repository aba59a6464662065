package state_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/state"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// token stores a token whose secret hash is its id.
func (w *world) token(id string, role accessv1.Role, name string) {
	w.t.Helper()
	result := w.apply(&raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{
		Id: id, SecretHash: []byte(id), Role: role, Name: name, ExpiresAt: timestamppb.New(w.now.Add(time.Hour)),
	}}}})
	if result.GetError() != nil {
		w.t.Fatalf("token %s: %s", id, result.GetError().GetMessage())
	}
}

func (w *world) join(token string, identity *raftv1.Identity) *raftv1.Result {
	return w.apply(&raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: token, SecretHash: []byte(token), Identity: identity}}})
}

func coordinatorIdentity(name, address string, serial byte) *raftv1.Identity {
	return &raftv1.Identity{Id: name, Role: accessv1.Role_ROLE_COORDINATOR, Name: name, Address: address, Serial: []byte{serial}}
}

func TestACoordinatorJoinsOnlyOnce(t *testing.T) {
	w := newWorld(t)
	for i, name := range []string{"", "", "c2", ""} {
		w.token(fmt.Sprintf("t%d", i+1), accessv1.Role_ROLE_COORDINATOR, name)
	}
	if result := w.join("t1", coordinatorIdentity("c2", "c2:7443", 1)); result.GetError() != nil {
		t.Fatalf("c2 joins: %s", result.GetError().GetMessage())
	}
	for _, token := range []string{"t2", "t3"} { // Not even a token that was made for this name replaces it.
		result := w.join(token, coordinatorIdentity("c2", "c2:7443", 2))
		if coordinatorv1.ErrorReason(result.GetError().GetReason()) != coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED ||
			!strings.Contains(result.GetError().GetMessage(), "c2 has joined already: join under another name") {
			t.Errorf("c2 joins again with %s: %v", token, result.GetError())
		}
	}
	if serial := w.state.View().Identity("c2").GetSerial(); len(serial) != 1 || serial[0] != 1 {
		t.Errorf("serial of c2 is %x, want that of its first certificate", serial)
	}
	if result := w.join("t2", coordinatorIdentity("c4", "c2:7443", 2)); !strings.Contains(result.GetError().GetMessage(), "c2:7443 is that of coordinator c2") {
		t.Errorf("c4 joins with the address of c2: %v", result.GetError())
	}
	if result := w.join("t2", coordinatorIdentity("c4", "c4:7443", 2)); result.GetError() != nil {
		t.Errorf("c4 joins with the token that c2 did not get: %s", result.GetError().GetMessage())
	}
}

func TestAHostJoinsAgainWithATokenForItsName(t *testing.T) {
	w := newWorld(t)
	for token, name := range map[string]string{"t1": "", "t2": "", "t3": "h1"} {
		w.token(token, accessv1.Role_ROLE_AGENT, name)
	}
	host := func(serial byte) *raftv1.Identity {
		return &raftv1.Identity{Id: "h1", Role: accessv1.Role_ROLE_AGENT, Name: "h1", Serial: []byte{serial}}
	}
	if result := w.join("t1", host(1)); result.GetError() != nil {
		t.Fatal(result.GetError().GetMessage())
	}
	if result := w.join("t2", host(2)); result.GetError() == nil {
		t.Error("any token took the place of h1")
	}
	if result := w.join("t3", host(3)); result.GetError() != nil {
		t.Errorf("a token for h1: %s", result.GetError().GetMessage())
	}
	if serial := w.state.View().Identity("h1").GetSerial(); serial[0] != 3 {
		t.Errorf("serial of h1 is %x, want that of its newest certificate", serial)
	}
}

// What cannot be stored is refused and never stops the program: an entry of the log that panics would do so at every start.
func TestIncompleteIdentitiesAndTokensAreRefused(t *testing.T) {
	agent, hash := accessv1.Role_ROLE_AGENT, []byte("h")
	for name, op := range map[string]*raftv1.Command{
		"no token":               {Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{}}},
		"token without id":       {Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{Role: agent, SecretHash: hash}}}},
		"token without role":     {Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{Id: "x", SecretHash: hash}}}},
		"token without secret":   {Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: &raftv1.Token{Id: "x", Role: agent}}}},
		"no identity":            {Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "t", SecretHash: []byte("t")}}},
		"identity without id":    {Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "t", SecretHash: []byte("t"), Identity: &raftv1.Identity{Role: agent, Name: "h1"}}}},
		"identity without name":  {Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "t", SecretHash: []byte("t"), Identity: &raftv1.Identity{Id: "h1", Role: agent}}}},
		"identity without role":  {Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "t", SecretHash: []byte("t"), Identity: &raftv1.Identity{Id: "h1", Name: "h1"}}}},
		"no join":                {Op: &raftv1.Command_Join{Join: &raftv1.Join{}}},
		"a token without a role": {Op: &raftv1.Command_Join{Join: &raftv1.Join{TokenId: "none", Identity: &raftv1.Identity{}}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.token("t", agent, "")
			if result := w.apply(op); result.GetError() == nil {
				t.Errorf("taken: %v", result)
			}
			if n := len(w.state.View().Hosts()); n != 0 {
				t.Errorf("%d hosts are registered", n)
			}
		})
	}
	first := &raftv1.Identity{Id: "c1", Role: accessv1.Role_ROLE_COORDINATOR, Name: "c1"}
	for name, op := range map[string]*raftv1.Bootstrap{
		"no cluster":           {Identity: first},
		"no identity":          {ClusterId: "x"},
		"identity without id":  {ClusterId: "x", Identity: &raftv1.Identity{Role: first.GetRole(), Name: "c1"}},
		"token without id":     {ClusterId: "x", Identity: first, Token: &raftv1.Token{Role: accessv1.Role_ROLE_ADMIN, SecretHash: hash}},
		"token without secret": {ClusterId: "x", Identity: first, Token: &raftv1.Token{Id: "t", Role: accessv1.Role_ROLE_ADMIN}},
	} {
		t.Run("bootstrap: "+name, func(t *testing.T) {
			s := state.New()
			result := s.Apply(1, &raftv1.Command{Version: state.CommandVersion, Op: &raftv1.Command_Bootstrap{Bootstrap: op}})
			if result.GetError() == nil || s.View().Meta().GetClusterId() != "" {
				t.Errorf("taken: %v", result)
			}
		})
	}
}
