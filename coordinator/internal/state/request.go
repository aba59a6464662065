package state

import (
	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

// RunOfRequest returns the run that a request started, as it is now; nil if the request is new or started none.
func (v *View) RunOfRequest(id string) *coordinatorv1.Run {
	seen := v.Request(id)
	if seen == nil {
		return nil
	}
	result := &raftv1.Result{}
	if err := proto.Unmarshal(seen.GetResult(), result); err != nil {
		panic("state: the result of a request is not readable: " + err.Error())
	}
	return v.Run(result.GetRun().GetId())
}
