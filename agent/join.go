package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	// joinTimeout bounds the whole of asking, joinPause is between two rounds.
	joinTimeout = 30 * time.Second
	joinPause   = 500 * time.Millisecond
	// Reasons of refusals, as they are on the wire.
	joinDenied, noLeader, notLeader = "JOIN_DENIED", "NO_LEADER", "NOT_LEADER"
)

// JoinOptions of a host that becomes a member. All but Name are required.
type JoinOptions struct {
	// DataDir to make; it must hold no identity.
	DataDir string
	// Coordinators by host:port, asked in this order.
	Coordinators []string
	// Token that an operator made.
	Token string
	// Name of the host in the cluster; empty means the one that the token is for, or the machine's own.
	Name string
}

// Join gets an identity for this host and stores it, with the coordinators, in the data directory. It returns the identity.
func Join(ctx context.Context, o JoinOptions) (string, error) {
	if o.DataDir == "" || len(o.Coordinators) == 0 {
		return "", errors.New("join: the data directory and a coordinator's address are required")
	}
	token, err := identity.ParseToken(strings.TrimSpace(o.Token))
	if err != nil {
		return "", err
	}
	if o.Name != "" {
		if err := identity.ValidName(o.Name); err != nil {
			return "", fmt.Errorf("--name: %w", err)
		}
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return "", err
	}
	unlock, err := lockDir(o.DataDir)
	if err != nil {
		return "", err
	}
	defer unlock() //nolint:errcheck // The process ends soon, and the lock with it.
	if _, err := os.Stat(filepath.Join(o.DataDir, identity.ChainFile)); err == nil {
		return "", fmt.Errorf("%s holds an identity already: start it with `muster-agent run --data-dir %s`, or give another directory", o.DataDir, o.DataDir)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return "", err
	}
	request := &coordinatorv1.JoinRequest{TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Name: o.Name}
	response, err := askToJoin(ctx, o.Coordinators, token, request)
	if denied(err) && o.Name == "" { // the token is for no particular name; a refusal does not burn it.
		request.Name = machineName()
		response, err = askToJoin(ctx, o.Coordinators, token, request)
	}
	if err != nil {
		return "", err
	}
	if id, err := identity.Parse(response.GetIdentity()); err != nil || id.Role != accessv1.Role_ROLE_AGENT {
		return "", fmt.Errorf("the token is not one for hosts (it made %s): get one with `musterctl host token`", response.GetIdentity())
	}
	members := membership{Coordinators: response.GetCoordinators()}
	if len(members.Coordinators) == 0 {
		members.Coordinators = o.Coordinators
	}
	if err := saveMembership(o.DataDir, members); err != nil {
		return "", err
	}
	// The identity comes last: a directory that has one is complete.
	return response.GetIdentity(), identity.SaveCredentials(o.DataDir, key, response.GetCertificateChain(), response.GetCaBundle())
}

// askToJoin asks one coordinator after the other until one decides. A refusal is a decision; that there is no leader is a reason to wait.
func askToJoin(ctx context.Context, coordinators []string, token identity.Token, req *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	pause := time.NewTicker(joinPause)
	defer pause.Stop()
	for {
		var errs []error
		electing := false
		for _, address := range coordinators {
			response, err := joinOver(ctx, address, token, req)
			if err == nil || denied(err) {
				return response, err
			}
			electing = electing || rpcerr.Reason(err) == noLeader || rpcerr.Reason(err) == notLeader
			errs = append(errs, fmt.Errorf("join over %s: %s", address, rpcerr.Message(err)))
		}
		if !electing {
			return nil, errors.Join(errs...)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil, errors.Join(errs...)
		}
	}
}

func denied(err error) bool { return rpcerr.Reason(err) == joinDenied }

func joinOver(ctx context.Context, address string, token identity.Token, req *coordinatorv1.JoinRequest) (_ *coordinatorv1.JoinResponse, err error) {
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(mtls.Pinned(token.Pin, mtls.ALPNgRPC))))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cc.Close()) }()
	return coordinatorv1.NewEnrollServiceClient(cc).Join(ctx, req)
}

// machineName makes a host's name of the machine's; the coordinator refuses what is no name.
func machineName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	return strings.Trim(regexp.MustCompile(`[^a-z0-9-]+`).ReplaceAllString(name, "-"), "-")
}
