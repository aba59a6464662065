package api

import (
	"context"
	"strings"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// HostServer serves HostService.
type HostServer struct {
	coordinatorv1.UnimplementedHostServiceServer
	*backend
}

// ListHosts returns the hosts that a selector matches.
func (s *HostServer) ListHosts(ctx context.Context, req *coordinatorv1.ListHostsRequest) (*coordinatorv1.ListHostsResponse, error) {
	matches, err := parseSelector(req.GetSelector())
	if err != nil {
		return nil, err
	}
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	response := &coordinatorv1.ListHostsResponse{}
	for _, host := range view.Hosts() {
		if matches(host.GetLabels()) {
			response.Hosts = append(response.Hosts, host)
		}
	}
	return response, nil
}

// parseSelector reads terms like zone=a,role!=db, all of which must hold.
func parseSelector(selector string) (func(labels map[string]string) bool, error) {
	type term struct {
		key, value string
		differs    bool
	}
	var terms []term
	for _, text := range strings.Split(selector, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		key, value, found := strings.Cut(text, "!=")
		differs := found
		if !found {
			key, value, found = strings.Cut(text, "=")
		}
		if !found || strings.TrimSpace(key) == "" {
			return nil, invalid("selector %q has the term %q: terms are label=value or label!=value", selector, text)
		}
		terms = append(terms, term{key: strings.TrimSpace(key), value: strings.TrimSpace(strings.TrimPrefix(value, "=")), differs: differs})
	}
	return func(labels map[string]string) bool {
		for _, t := range terms {
			if (labels[t.key] == t.value) == t.differs {
				return false
			}
		}
		return true
	}, nil
}

// GetHost returns one host.
func (s *HostServer) GetHost(ctx context.Context, req *coordinatorv1.GetHostRequest) (*coordinatorv1.GetHostResponse, error) {
	view, err := s.read(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	host := view.Host(req.GetHost())
	if host == nil {
		return nil, notFound(coordinatorv1.ErrorReason_ERROR_REASON_HOST_NOT_FOUND, "there is no host %q: `musterctl host list` shows them", req.GetHost())
	}
	return &coordinatorv1.GetHostResponse{Host: host}, nil
}

// CreateHostToken makes a token with which one agent joins.
func (s *HostServer) CreateHostToken(ctx context.Context, req *coordinatorv1.CreateHostTokenRequest) (*coordinatorv1.CreateHostTokenResponse, error) {
	token, expires, err := s.tokenFor(ctx, accessv1.Role_ROLE_AGENT, req.GetName(), req.GetLabels(), req.GetTtl(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.CreateHostTokenResponse{Token: token, ExpiresAt: expires}, nil
}
