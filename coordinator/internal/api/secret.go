package api

import (
	"context"
	"regexp"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const secretLimit = 512000

// secretName is what a compose file can name.
var secretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// SecretServer serves SecretService.
type SecretServer struct {
	coordinatorv1.UnimplementedSecretServiceServer
	*backend
}

// PutSecret stores a new version of a secret.
func (s *SecretServer) PutSecret(ctx context.Context, req *coordinatorv1.PutSecretRequest) (*coordinatorv1.PutSecretResponse, error) {
	if err := checkRequest(req.GetRequestId(), "", true); err != nil {
		return nil, err
	}
	switch {
	case !secretName.MatchString(req.GetName()):
		return nil, invalid("secret name %q is not valid: 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit", req.GetName())
	case len(req.GetValue()) == 0:
		return nil, invalid("the value of secret %q is empty", req.GetName())
	case len(req.GetValue()) > secretLimit:
		return nil, invalid("the value of secret %q has %d bytes: at most %d are allowed", req.GetName(), len(req.GetValue()), secretLimit)
	}
	result, view, err := s.proposeAndView(ctx, &raftv1.Command{
		RequestId: req.GetRequestId(), Op: &raftv1.Command_PutSecret{PutSecret: &raftv1.PutSecret{Name: req.GetName(), Value: req.GetValue()}},
	})
	if err != nil {
		return nil, err
	}
	return &coordinatorv1.PutSecretResponse{Secret: secretInfo(view.Secret(req.GetName(), result.GetVersion()))}, nil
}

// ListSecrets returns names and versions.
func (s *SecretServer) ListSecrets(ctx context.Context, _ *coordinatorv1.ListSecretsRequest) (*coordinatorv1.ListSecretsResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	response := &coordinatorv1.ListSecretsResponse{}
	for _, secret := range view.Secrets() {
		response.Secrets = append(response.Secrets, secretInfo(secret))
	}
	return response, nil
}

func secretInfo(secret *raftv1.Secret) *coordinatorv1.SecretInfo {
	return &coordinatorv1.SecretInfo{Name: secret.GetName(), Version: secret.GetVersion(), CreatedAt: secret.GetCreatedAt(), CreatedBy: secret.GetCreatedBy()}
}
