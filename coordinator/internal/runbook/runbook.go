// Package runbook holds the planners: each turns the present state and a request into a plan, one file for each procedure. A planner decides
// the order of the hosts' actions and nothing else; how a plan is run is the engine's business, what an action does the agents'.
package runbook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const agentPackage = "muster.agent.v1."

// Seal completes a plan with its hash.
func Seal(plan *coordinatorv1.Plan) error {
	plan.Hash = ""
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(plan)
	if err != nil {
		return fmt.Errorf("marshal the plan: %w", err)
	}
	sum := sha256.Sum256(raw)
	plan.Hash = hex.EncodeToString(sum[:])
	return nil
}

// action makes the action of a step from an agent's method and its request. The effect is the one that the method's access rule declares.
func action(method string, request proto.Message) *coordinatorv1.Action {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		panic("runbook: marshal a request of " + method + ": " + err.Error())
	}
	service, name, _ := strings.Cut(method, "/")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(agentPackage + service))
	if err != nil {
		panic("runbook: " + method + " is no agent's method: " + err.Error())
	}
	rpc := descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
	rule := proto.GetExtension(rpc.Options(), accessv1.E_Rule).(*accessv1.Rule)
	return &coordinatorv1.Action{Method: agentPackage + method, Request: raw, Effect: rule.GetEffect()}
}

func seconds(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
