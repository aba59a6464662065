package api

import (
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// ServiceServer serves ServiceService.
type ServiceServer struct {
	coordinatorv1.UnimplementedServiceServiceServer
	*backend
}
