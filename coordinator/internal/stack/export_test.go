package stack

import (
	"context"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ComposeJSON returns the project that Load maps, as compose-go writes it.
func ComposeJSON(ctx context.Context, src *coordinatorv1.StackSource) ([]byte, error) {
	p, err := loadProject(ctx, src)
	if err != nil {
		return nil, err
	}
	return p.Project.MarshalJSON()
}
