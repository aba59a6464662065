package fleet

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"
)

// Healthcheck of an image.
type Healthcheck struct {
	// Test as the engine takes it, like CMD and its words.
	Test []string
	// Interval between tests.
	Interval time.Duration
	// Timeout of a test.
	Timeout time.Duration
	// Retries before the container counts as unhealthy.
	Retries int
}

// ImageSpec says what an image holds: one static program and nothing else, as FROM scratch does.
type ImageSpec struct {
	// Tag of the image, repository:tag.
	Tag string
	// Program is the path of a static program, which becomes the entry point.
	Program string
	// Env as NAME=value.
	Env []string
	// Labels of the image. Different labels make different image ids.
	Labels map[string]string
	// Healthcheck of the image; nil for none.
	Healthcheck *Healthcheck
}

// Image is a built image. The same spec gives the same id on every machine, without an engine and without a network.
type Image struct {
	// Tag of the image, repository:tag.
	Tag string

	config []byte
	layer  []byte
}

// NewImage builds an image.
func NewImage(spec ImageSpec) (*Image, error) {
	program, err := os.ReadFile(spec.Program)
	if err != nil {
		return nil, err
	}
	layer, err := archive([]file{{"app", 0o755, program}})
	if err != nil {
		return nil, err
	}
	run := map[string]any{"Entrypoint": []string{"/app"}, "Env": spec.Env, "Labels": spec.Labels, "ExposedPorts": map[string]any{"8080/tcp": struct{}{}}}
	if spec.Healthcheck != nil {
		run["Healthcheck"] = spec.Healthcheck
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      "2026-01-01T00:00:00Z",
		"config":       run,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
		"history":      []map[string]string{{"created": "2026-01-01T00:00:00Z", "created_by": "COPY app /app"}},
	})
	if err != nil {
		return nil, err
	}
	return &Image{Tag: spec.Tag, config: config, layer: layer}, nil
}

// ID of the image, as every engine knows it.
func (i *Image) ID() string { return digest(i.config) }

// Archive of the image for an engine's /images/load.
func (i *Image) Archive() (io.Reader, error) {
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{i.Tag}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	data, err := archive([]file{{"config.json", 0o644, i.config}, {"layer.tar", 0o644, i.layer}, {"manifest.json", 0o644, manifest}})
	return bytes.NewReader(data), err
}

// LoadImages gives the images to an engine.
func (a *API) LoadImages(ctx context.Context, images ...*Image) error {
	for _, i := range images {
		data, err := i.Archive()
		if err != nil {
			return err
		}
		if err := a.LoadImage(ctx, data); err != nil {
			return fmt.Errorf("image %s: %w", i.Tag, err)
		}
	}
	return nil
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

// Push sends the image to a registry at host:port and returns its digest there.
func (i *Image) Push(ctx context.Context, registry string) (string, error) {
	name, tag, ok := strings.Cut(i.Tag, ":")
	if !ok {
		return "", fmt.Errorf("image %s has no tag", i.Tag)
	}
	base := "http://" + registry + "/v2/" + name
	for _, blob := range [][]byte{i.layer, i.config} {
		if err := pushBlob(ctx, base, blob); err != nil {
			return "", fmt.Errorf("push %s: %w", i.Tag, err)
		}
	}
	describe := func(kind string, blob []byte) map[string]any {
		return map[string]any{"mediaType": kind, "size": len(blob), "digest": digest(blob)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        describe("application/vnd.docker.container.image.v1+json", i.config),
		"layers":        []any{describe("application/vnd.docker.image.rootfs.diff.tar", i.layer)},
	})
	if err != nil {
		return "", err
	}
	if _, err := put(ctx, http.MethodPut, base+"/manifests/"+tag, manifestType, manifest); err != nil {
		return "", fmt.Errorf("push %s: %w", i.Tag, err)
	}
	return digest(manifest), nil
}

func pushBlob(ctx context.Context, base string, blob []byte) error {
	location, err := put(ctx, http.MethodPost, base+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	target, err := url.Parse(location)
	if err != nil {
		return err
	}
	query := target.Query()
	query.Set("digest", digest(blob))
	target.RawQuery = query.Encode()
	_, err = put(ctx, http.MethodPut, target.String(), "application/octet-stream", blob)
	return err
}

// put returns the Location of the answer.
func put(ctx context.Context, method, target, kind string, body []byte) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	if resp.StatusCode >= 300 {
		return "", fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, bytes.TrimSpace(text))
	}
	return resp.Header.Get("Location"), nil
}

type file struct {
	name string
	mode int64
	data []byte
}

// archive is the same for the same files, whoever makes it and when.
func archive(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func digest(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
