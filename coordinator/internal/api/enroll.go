package api

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// CertificateLife of every identity. Certificates are not renewed yet, so it is long.
const CertificateLife = 365 * 24 * time.Hour

// addressLimit is what a host name and a port can have.
const addressLimit = 255

// EnrollServer serves EnrollService.
type EnrollServer struct {
	coordinatorv1.UnimplementedEnrollServiceServer
	*backend
}

// Join burns a token and signs a certificate. The caller learns nothing of why it was refused; the log does.
func (s *EnrollServer) Join(ctx context.Context, req *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	response, err := s.join(ctx, req)
	if err == nil {
		return response, nil
	}
	if code := status.Code(err); code == codes.Unavailable || code == codes.Unknown || code == codes.DeadlineExceeded {
		return nil, err
	}
	s.log.Warn("join denied", "token_id", req.GetTokenId(), "name", req.GetName(), "err", err)
	return nil, rpcerr.New(codes.PermissionDenied, coordinatorv1.ErrorReason_ERROR_REASON_JOIN_DENIED,
		"join denied: ask for a new token; the coordinator's log says why")
}

func (s *EnrollServer) join(ctx context.Context, req *coordinatorv1.JoinRequest) (*coordinatorv1.JoinResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	token, now := view.Token(req.GetTokenId()), time.Now()
	if token == nil {
		return nil, errors.New("there is no such token")
	}
	name := req.GetName()
	if name == "" {
		name = token.GetName()
	}
	if err := identity.ValidName(name); err != nil {
		return nil, err
	}
	if err := checkAddress(token.GetRole(), req.GetAddress()); err != nil {
		return nil, err
	}
	id := identity.ID{Cluster: view.Meta().GetClusterId(), Role: token.GetRole(), Name: name}
	var names []string
	if id.Role == accessv1.Role_ROLE_COORDINATOR {
		names = CertificateHosts(req.GetAddress())
	}
	certificate, err := identity.Issue(view.Meta().GetAuthority(), id, req.GetCsr(), now, CertificateLife, names...)
	if err != nil {
		return nil, err
	}
	// The certificate is handed out only once the registry holds it and the token is burned.
	_, err = s.propose(ctx, &raftv1.Command{Op: &raftv1.Command_Join{Join: &raftv1.Join{
		TokenId: req.GetTokenId(), SecretHash: identity.Token{Secret: req.GetTokenSecret()}.SecretHash(),
		Identity: &raftv1.Identity{
			Id: id.String(), Role: id.Role, Name: name, Address: req.GetAddress(), Serial: certificate.Serial, ExpiresAt: timestamppb.New(certificate.NotAfter),
		},
	}}})
	if err != nil {
		return nil, err
	}
	s.log.Info("joined", "identity", id.String(), "token_id", req.GetTokenId())
	return &coordinatorv1.JoinResponse{
		CertificateChain: certificate.Chain, CaBundle: [][]byte{view.Meta().GetAuthority().GetRoot().GetCertificate()}, Identity: id.String(),
		ClusterId: id.Cluster, Coordinators: coordinators(s.State.View().Identities(), id), ExpiresAt: timestamppb.New(certificate.NotAfter),
	}, nil
}

// checkAddress refuses an address that nobody could dial. The state, which knows them all, refuses one that another coordinator has.
func checkAddress(role accessv1.Role, address string) error {
	if role != accessv1.Role_ROLE_COORDINATOR {
		if address != "" {
			return invalid("only coordinators have an address, this has %.64q", address)
		}
		return nil
	}
	if len(address) > addressLimit {
		return invalid("the address has %d bytes: at most %d are allowed", len(address), addressLimit)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return invalid("address %q is no host:port at which others reach the coordinator", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return invalid("address %q has the port %q: it must be a number from 1 to 65535", address, port)
	}
	return nil
}

// CertificateHosts returns the names under which ordinary TLS clients reach a coordinator that is advertised at an address.
func CertificateHosts(advertise string) []string {
	names := []string{"localhost", "127.0.0.1"}
	if host, _, err := net.SplitHostPort(advertise); err == nil && host != "" && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

// coordinators returns the addresses of all coordinators but the one that joins.
func coordinators(identities []*raftv1.Identity, joining identity.ID) []string {
	var addresses []string
	for _, i := range identities {
		if i.GetRole() == accessv1.Role_ROLE_COORDINATOR && !i.GetEvicted() && i.GetId() != joining.String() {
			addresses = append(addresses, i.GetAddress())
		}
	}
	return addresses
}

// createToken stores a token and returns its text, which nobody can show again.
func (b *backend) createToken(ctx context.Context, token *raftv1.Token, ttl time.Duration, requestID string) (string, error) {
	if err := checkRequest(requestID, "", false); err != nil {
		return "", err
	}
	if token.GetName() != "" {
		if err := identity.ValidName(token.GetName()); err != nil {
			return "", invalid("%s", err)
		}
	}
	view, err := b.read(ctx, false)
	if err != nil {
		return "", err
	}
	fresh, err := identity.NewToken(view.Meta().GetAuthority().GetRoot().GetCertificate())
	if err != nil {
		return "", b.mapError(err)
	}
	token.Id, token.SecretHash, token.ExpiresAt = fresh.ID, fresh.SecretHash(), timestamppb.New(time.Now().Add(ttl))
	// The secret is made anew for each call, so a repeated call stores another token; the one nobody received expires.
	if _, err := b.propose(ctx, &raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: token}}}); err != nil {
		return "", err
	}
	return fresh.String(), nil
}

// tokenFor makes a token from the fields that all requests for one have in common.
func (b *backend) tokenFor(ctx context.Context, role accessv1.Role, name string, labels map[string]string, given *durationpb.Duration, requestID string) (string, *timestamppb.Timestamp, error) {
	ttl, err := life(given.AsDuration())
	if err != nil {
		return "", nil, err
	}
	token := &raftv1.Token{Role: role, Name: name, Labels: labels}
	text, err := b.createToken(ctx, token, ttl, requestID)
	return text, token.GetExpiresAt(), err
}
