//go:build e2e || crash

package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const spheroseg = "spheroseg"

func shipped(name string) (string, error) {
	data, err := os.ReadFile(filepath.Join("..", "stacks", "spheroseg", name))
	return string(data), err
}

// maintainable deploys the stack that the shipped procedure is for, once. It is watched for less long than as it is shipped.
func maintainable(ctx context.Context, r *rig) error {
	_, err := r.stacks.GetStack(ctx, &coordinatorv1.GetStackRequest{Stack: spheroseg})
	if status.Code(err) != codes.NotFound {
		return err
	}
	compose, err := shipped("compose.yaml")
	if err != nil {
		return err
	}
	return r.finish(ctx, func(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
		return r.apply(ctx, strings.ReplaceAll(compose, "monitor: 500ms", "monitor: 1ms"))
	})
}

// maintain runs the shipped maintenance procedure to a schema that was never there.
func maintain(ctx context.Context, r *rig) (*coordinatorv1.Run, error) {
	source, err := shipped("maintenance.yaml")
	if err != nil {
		return nil, err
	}
	id := r.requestID()
	resp, err := coordinatorv1.NewProcedureServiceClient(r.client).StartProcedure(ctx, &coordinatorv1.StartProcedureRequest{
		File: "maintenance.yaml", Source: []byte(source), Inputs: map[string]string{"schema": id}, RequestId: id, Reason: "scenario",
	})
	return resp.GetRun(), err
}

// approve says yes as another person than the one who started the run, once.
func approve(ctx context.Context, r *rig, run *coordinatorv1.Run, c *crash) error {
	if c.approved {
		return nil
	}
	resp, err := r.runs.GetRun(ctx, &coordinatorv1.GetRunRequest{RunId: run.GetId()})
	if err != nil {
		return err
	}
	for _, step := range resp.GetSteps() {
		if step.GetState() != coordinatorv1.StepState_STEP_STATE_ASKING {
			continue
		}
		c.approved = true
		_, err := coordinatorv1.NewRunServiceClient(r.second).DecideStep(ctx, &coordinatorv1.DecideStepRequest{
			RunId: run.GetId(), StepId: step.GetStepId(), PlanHash: run.GetPlanHash(), Approve: true, RequestId: r.requestID(), Reason: "scenario",
		})
		if err != nil {
			return fmt.Errorf("approve %s: %w", step.GetStepId(), err)
		}
	}
	return nil
}
