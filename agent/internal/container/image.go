package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	// registryLimit bounds the question to a registry: a plan waits for it.
	registryLimit = 3 * time.Second
	// hubLimit is for an image that is here and whose name has no registry: it may as well have been built here.
	hubLimit = time.Second
)

// imageID is an image by its content, without a repository.
var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// ResolveImage finds what an image is called forever: by the digest that its registry has now, else by what this host has.
func (e *Engine) ResolveImage(ctx context.Context, name string) (*agentv1.ResolveImageResponse, error) {
	here, err := e.localImage(ctx, name)
	if err != nil {
		return nil, e.failure(ctx, err, "look for image %q", name)
	}
	if imageID.MatchString(name) {
		if here == nil {
			return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true,
				"image %s is not on host %s, and no registry can be asked for an image id: load it there, or name it by repository@digest", name, e.name)
		}
		return pinned(here.ID, true, here), nil
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, invalid("image %q: %s", name, err)
	}
	_, fixed := named.(reference.Digested)
	if fixed && here != nil {
		return pinned(reference.FamiliarString(named), false, here), nil
	}
	if here != nil && len(here.RepoDigests) == 0 && !hasRegistry(name) {
		return pinned(here.ID, true, here), nil // built here and never pushed: there is nobody to ask.
	}
	digest, known, err := e.askRegistry(ctx, named, here != nil && !hasRegistry(name))
	switch {
	case err == nil:
		at := reference.FamiliarName(named) + "@" + digest
		// The host may have an older image under the same tag.
		here, err := e.localImage(ctx, at)
		if err != nil {
			return nil, e.failure(ctx, err, "look for image %q", at)
		}
		return pinned(at, false, here), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("resolve image %q: %w", name, ctx.Err())
	case here == nil:
		return nil, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, known,
			"image %q is not on host %s and its registry does not give it: %s; correct the name, push the image, or load it on the host", name, e.name, engineText(err))
	}
	e.log.Info("image taken from this host, its registry did not answer for it", "image", name, "err", err)
	if at := repoDigest(here, named); at != "" {
		return pinned(at, known, here), nil
	}
	return pinned(here.ID, true, here), nil
}

// pinned describes an image; here is nil while the host does not have it.
func pinned(at string, local bool, here *image.InspectResponse) *agentv1.ResolveImageResponse {
	out := &agentv1.ResolveImageResponse{Pinned: at, Local: local, Present: here != nil}
	if here == nil || here.Config == nil || here.Config.Healthcheck == nil {
		return out
	}
	h := here.Config.Healthcheck
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		return out
	}
	out.Healthcheck, out.HealthcheckRetries = true, uint32(max(h.Retries, 0))
	if h.Interval > 0 {
		out.HealthcheckInterval = durationpb.New(h.Interval)
	}
	if h.StartPeriod > 0 {
		out.HealthcheckStartPeriod = durationpb.New(h.StartPeriod)
	}
	return out
}

// localImage returns nil if the host does not have the image.
func (e *Engine) localImage(ctx context.Context, name string) (*image.InspectResponse, error) {
	var found image.InspectResponse
	err := e.read(ctx, func(ctx context.Context) (err error) {
		found, err = e.docker.ImageInspect(ctx, name)
		return err
	})
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &found, nil
}

// askRegistry returns the digest that the registry has for a reference. known says that a failure is the registry's own word.
func (e *Engine) askRegistry(ctx context.Context, named reference.Named, impatient bool) (digest string, known bool, err error) {
	limit := registryLimit
	if impatient {
		limit = hubLimit
	}
	auth, err := registryAuth(ctx, named)
	if err != nil {
		return "", false, err
	}
	asking, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	got, err := e.docker.DistributionInspect(asking, named.String(), auth)
	if err != nil {
		if asking.Err() != nil {
			err = fmt.Errorf("no answer within %s", limit)
		}
		return "", registrySaidNo(err), err
	}
	return got.Descriptor.Digest.String(), false, nil
}

// registrySaidNo tells a registry that does not have, or does not give, an image from one that cannot be reached.
func registrySaidNo(err error) bool {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) {
		return true
	}
	text := strings.ToLower(err.Error())
	for _, sign := range []string{"manifest unknown", "not found", "name unknown", "denied", "unauthorized", "does not exist"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// hasRegistry says that a reference begins with the host of a registry, by Docker's own rule.
func hasRegistry(name string) bool {
	first, _, ok := strings.Cut(name, "/")
	return ok && (strings.ContainsAny(first, ".:") || first == "localhost")
}

// repoDigest returns a digest under which a registry gave this image, preferably of the repository that was asked for.
func repoDigest(here *image.InspectResponse, named reference.Named) string {
	for _, d := range here.RepoDigests {
		if ref, err := reference.ParseNormalizedNamed(d); err == nil && ref.Name() == named.Name() {
			return reference.FamiliarString(ref)
		}
	}
	if len(here.RepoDigests) > 0 {
		return here.RepoDigests[0]
	}
	return ""
}

// Pull makes sure that the host has the image, and says whether it had to be fetched. An image that is here is never asked for.
func (e *Engine) Pull(ctx context.Context, name string) (bool, error) {
	fetched := false
	err := e.call(ctx, 0, func(ctx context.Context) error {
		_, err := e.docker.ImageInspect(ctx, name)
		if err == nil || !cerrdefs.IsNotFound(err) {
			return err
		}
		if imageID.MatchString(name) {
			return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true,
				"image %s is not on host %s, and no registry can be asked for an image id: load it there (docker save, docker load)", name, e.name)
		}
		if err := e.fetch(ctx, name); err != nil {
			return err
		}
		fetched = true
		return nil
	})
	if err == nil {
		return fetched, nil
	}
	var known *rpcerr.OperationError
	if ctx.Err() != nil || errors.As(err, &known) {
		return false, e.failure(ctx, err, "pull image %q", name)
	}
	if cerrdefs.IsInvalidArgument(err) {
		return false, invalid("pull image %q: %s", name, engineText(err))
	}
	if registrySaidNo(err) {
		return false, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_NOT_FOUND, true, "pull image %q to host %s: %s", name, e.name, engineText(err))
	}
	return false, rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_IMAGE_PULL, false, "pull image %q to host %s: %s", name, e.name, engineText(err))
}

// fetch pulls an image to the end. The engine reports what goes wrong inside a stream that it began with success.
func (e *Engine) fetch(ctx context.Context, name string) error {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return invalid("image %q: %s", name, err)
	}
	auth, err := registryAuth(ctx, named)
	if err != nil {
		return err
	}
	stream, err := e.docker.ImagePull(ctx, named.String(), image.PullOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer stream.Close()
	for messages := json.NewDecoder(stream); ; {
		var m struct {
			Error string `json:"error"`
		}
		if err := messages.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if m.Error != "" {
			return errors.New(m.Error)
		}
	}
	// A daemon that dies in the middle ends the stream as if it were complete.
	if _, err := e.docker.ImageInspect(ctx, name); err != nil {
		if cerrdefs.IsNotFound(err) {
			return fmt.Errorf("the engine does not have %s after pulling it", name)
		}
		return err
	}
	return nil
}
