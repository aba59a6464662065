package state

import (
	"crypto/subtle"
	"fmt"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	wrongSecretsBurn = 5
	// tokenSweep is at which indexes, its multiples, a new token lets old ones be forgotten.
	tokenSweep = 64
)

func (c *change) bootstrap(op *raftv1.Bootstrap) (*raftv1.Result, error) {
	if c.meta.GetClusterId() != "" {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "cluster %s was founded already", c.meta.GetClusterId())
	}
	if op.GetClusterId() == "" {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "a cluster needs an id")
	}
	if err := whole(op.GetIdentity()); err != nil {
		return nil, err
	}
	if op.GetToken() != nil {
		if err := wholeToken(op.GetToken()); err != nil {
			return nil, err
		}
	}
	c.meta.ClusterId, c.meta.ClusterName, c.meta.Authority = op.GetClusterId(), op.GetClusterName(), op.GetAuthority()
	c.register(op.GetIdentity())
	if token := op.GetToken(); token != nil {
		c.put(tableToken, token.GetId(), token)
	}
	return &raftv1.Result{}, nil
}

// whole refuses an identity without what the registry finds it by. An entry of the log that cannot be stored would stop every member, and
// again at every start.
func whole(i *raftv1.Identity) error {
	if i.GetId() == "" || i.GetName() == "" || i.GetRole() == accessv1.Role_ROLE_UNSPECIFIED {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "an identity needs an id, a name and a role, got %q, %q and %s", i.GetId(), i.GetName(), i.GetRole())
	}
	return nil
}

// wholeToken refuses a token that nobody could name, that gives no role, or that an empty secret would open. Its name may be empty: such a
// token prescribes none.
func wholeToken(t *raftv1.Token) error {
	if t.GetId() == "" || len(t.GetSecretHash()) == 0 || t.GetRole() == accessv1.Role_ROLE_UNSPECIFIED {
		return refuse(coordinatorv1.ErrorReason_ERROR_REASON_INVALID, "a token needs an id, the hash of a secret and a role, got %q, %d bytes and %s",
			t.GetId(), len(t.GetSecretHash()), t.GetRole())
	}
	return nil
}

func (c *change) putToken(op *raftv1.PutToken) (*raftv1.Result, error) {
	if err := wholeToken(op.GetToken()); err != nil {
		return nil, err
	}
	token := clone(op.GetToken())
	if c.view().Token(token.GetId()) != nil {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_CONFLICT, "token %s exists already", token.GetId())
	}
	token.CreatedBy = c.actor
	c.put(tableToken, token.GetId(), token)
	// Tokens that are of no use any more are forgotten with a later one; to look at all of them with every one would make 10,000 joins slow.
	if c.index%tokenSweep != 0 {
		return &raftv1.Result{}, nil
	}
	for _, old := range all[*raftv1.Token](c.view(), tableToken, indexID+"_prefix", "") {
		if c.now.Sub(old.GetExpiresAt().AsTime()) > requestAge {
			c.drop(tableToken, old.GetId(), old)
		}
	}
	return &raftv1.Result{}, nil
}

// join burns the token and registers the identity in one step, so that a token never admits two. A wrong secret is counted, which is
// why it is a result and not a refusal.
func (c *change) join(op *raftv1.Join) (*raftv1.Result, error) {
	denied := func(format string, args ...any) (*raftv1.Result, error) {
		return refused(refuse(coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED, format, args...)), nil
	}
	token, identity := clone(c.view().Token(op.GetTokenId())), clone(op.GetIdentity())
	switch {
	case token.GetId() == "":
		return denied("token %q does not exist", op.GetTokenId())
	case token.GetUsedBy() != "":
		return denied("token %s was used by %s", token.GetId(), token.GetUsedBy())
	case token.GetFailures() >= wrongSecretsBurn:
		return denied("token %s was burned by wrong secrets", token.GetId())
	case c.now.After(token.GetExpiresAt().AsTime()):
		return denied("token %s expired at %s", token.GetId(), token.GetExpiresAt().AsTime())
	case subtle.ConstantTimeCompare(token.GetSecretHash(), op.GetSecretHash()) != 1:
		token.Failures++
		c.put(tableToken, token.GetId(), token)
		return denied("wrong secret for token %s", token.GetId())
	case token.GetRole() != identity.GetRole():
		return denied("token %s gives role %s, not %s", token.GetId(), token.GetRole(), identity.GetRole())
	case token.GetName() != "" && token.GetName() != identity.GetName():
		return denied("token %s is for %q, not for %q", token.GetId(), token.GetName(), identity.GetName())
	}
	if err := whole(identity); err != nil {
		return denied("%s", err)
	}
	if why := c.taken(identity, token); why != "" {
		return denied("%s", why)
	}
	token.UsedBy = identity.GetId()
	c.put(tableToken, token.GetId(), token)
	identity.Labels = token.GetLabels()
	c.register(identity)
	return &raftv1.Result{Identity: identity}, nil
}

// taken says why an identity cannot be registered beside those that are there; empty if it can.
func (c *change) taken(identity *raftv1.Identity, token *raftv1.Token) string {
	known := c.view().Identity(identity.GetId())
	if identity.GetRole() != accessv1.Role_ROLE_COORDINATOR {
		// A host or a person that lost its key joins again with a token that an administrator made for that very name.
		if known != nil && token.GetName() != identity.GetName() {
			return fmt.Sprintf("%s has joined already: make a token for this name", identity.GetId())
		}
		return ""
	}
	// A coordinator is its disk: others count its vote for what they think it has written. Whoever comes without that disk is another
	// coordinator, or entries that were committed by its vote could be lost.
	if known != nil && !known.GetEvicted() {
		return fmt.Sprintf("%s has joined already: join under another name", identity.GetName())
	}
	for _, other := range c.view().Identities() {
		if other.GetRole() == accessv1.Role_ROLE_COORDINATOR && !other.GetEvicted() && other.GetAddress() == identity.GetAddress() {
			return fmt.Sprintf("address %s is that of coordinator %s: give the address of this one", identity.GetAddress(), other.GetName())
		}
	}
	return ""
}

func (c *change) register(identity *raftv1.Identity) {
	identity = clone(identity)
	identity.CreatedAt = c.stamp()
	c.put(tableIdentity, identity.GetId(), identity)
	if identity.GetRole() != accessv1.Role_ROLE_AGENT {
		return
	}
	host := clone(c.view().Host(identity.GetName()))
	if host.GetName() == "" {
		host = &coordinatorv1.Host{Name: identity.GetName(), State: coordinatorv1.HostState_HOST_STATE_JOINED, StateSince: c.stamp()}
	}
	host.JoinedAt, host.TokenLabels, host.Revision = c.stamp(), identity.GetLabels(), c.index
	host.Labels = hostLabels(host)
	c.put(tableHost, host.GetName(), host)
}

// evict refuses an identity from now on: the registry is asked at every call. The name of a coordinator is not given again.
func (c *change) evict(op *raftv1.Evict) (*raftv1.Result, error) {
	identity := clone(c.view().Identity(op.GetIdentity()))
	if identity.GetId() == "" {
		return nil, refuse(coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, "there is no identity %q in the registry", op.GetIdentity())
	}
	identity.Evicted = true
	c.put(tableIdentity, identity.GetId(), identity)
	return &raftv1.Result{Identity: identity}, nil
}
