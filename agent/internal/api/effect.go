package api

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// effectOf returns what the proto declares for a method such as /muster.agent.v1.ContainerService/PullImage.
func effectOf(method string) (accessv1.Effect, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return 0, fmt.Errorf("method %s: %w", method, err)
	}
	rule, ok := proto.GetExtension(descriptor.Options(), accessv1.E_Rule).(*accessv1.Rule)
	if !ok || rule.GetEffect() == accessv1.Effect_EFFECT_UNSPECIFIED {
		return 0, fmt.Errorf("method %s declares no effect in its proto", method)
	}
	return rule.GetEffect(), nil
}
