package container

import (
	"context"

	"github.com/distribution/reference"

	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

// Admit is admit for the tests outside.
func (p Policy) Admit(spec *agentv1.ContainerSpec, socket, secretsDir string) error {
	return p.admit(spec, guarded{socket: socket, secretsDir: secretsDir})
}

// TakenPort is takenPort for the tests outside.
func TakenPort(text string) (string, bool) { return takenPort(text) }

// RegistryAuth is registryAuth for the tests outside.
func RegistryAuth(named reference.Named) (string, error) {
	return registryAuth(context.Background(), named)
}
