package command

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/ctl/internal/output"
	"github.com/spheroseg/muster/internal/archive"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// snapshotPart of a file is sent in one message.
const snapshotPart = 64 << 10

func (a *app) snapshotCommand() *cobra.Command {
	return a.noun("snapshot", "Save what the coordinators hold, and bring it back",
		a.snapshotSaveCommand(), a.snapshotInspectCommand(), a.snapshotRestoreCommand())
}

// absolute resolves a file name against the working directory.
func (a *app) absolute(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(a.WorkingDirectory, file)
}

func (a *app) snapshotSaveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "save FILE", Short: "Save everything that the coordinators hold into a file", Args: exactly("FILE"),
		Long: `Save writes one file with all stacks, releases, runs, hosts, identities, secrets and procedures. It is sealed with the cluster's own key: only
a coordinator of this cluster opens it, so it is of use as long as one of its coordinators, or a copy of a data directory, is left.`,
		Example: "  musterctl operator snapshot save prod-$(date +%F).snapshot",
		RunE: func(cmd *cobra.Command, args []string) error {
			file := a.absolute(args[0])
			if _, err := os.Stat(file); err == nil {
				return output.Usage("give the name of a new file", "%s is there already", args[0])
			}
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			info, err := a.save(cmd.Context(), cluster, file)
			if err != nil {
				return a.fail("no snapshot was saved", err, nil)
			}
			return a.printSnapshot(args[0], info)
		},
	}
	return cmd
}

// save writes the file beside its name first: a file that has the name is whole.
func (a *app) save(ctx context.Context, cluster coordinatorv1.ClusterServiceClient, file string) (info archive.Info, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return info, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	defer func() { _ = f.Close() }() // what matters is closed below
	sum, err := a.receive(ctx, cluster, f)
	if err != nil {
		return info, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return info, err
	}
	if info, err = archive.Inspect(f); err != nil {
		return info, err
	}
	if !bytes.Equal(info.SHA256, sum) {
		return info, fmt.Errorf("the file has the SHA-256 %x, the coordinator says %x", info.SHA256, sum)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return info, err
	}
	return info, os.Rename(f.Name(), file)
}

// receive writes the file that a coordinator sends. A coordinator that does not answer is left for the next one.
func (a *app) receive(ctx context.Context, cluster coordinatorv1.ClusterServiceClient, to *os.File) (sum []byte, err error) {
	err = a.eachCoordinator(ctx, func(ctx context.Context) error {
		if err := errors.Join(to.Truncate(0), func() error { _, err := to.Seek(0, io.SeekStart); return err }()); err != nil {
			return err
		}
		stream, err := cluster.SaveSnapshot(ctx, &coordinatorv1.SaveSnapshotRequest{})
		for err == nil {
			var part *coordinatorv1.SaveSnapshotResponse
			if part, err = stream.Recv(); err != nil {
				break
			}
			if len(part.GetSha256()) > 0 {
				sum = part.GetSha256()
			}
			if _, err := to.Write(part.GetData()); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	})
	return sum, err
}

// eachCoordinator does something with the current coordinator, and with the next ones if that one cannot.
func (a *app) eachCoordinator(ctx context.Context, do func(context.Context) error) error {
	a.learnPeers(ctx)
	var err error
	pause := 100 * time.Millisecond
	for range 3 {
		for range a.client.Addresses() {
			if err = do(ctx); err == nil || ctx.Err() != nil || !canAskAnother(err) {
				return err
			}
			a.client.Leave(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
			pause *= 4
		}
	}
	return err
}

// canAskAnother says that nothing was done, and another coordinator may be able to.
func canAskAnother(err error) bool {
	switch rpcerr.Reason(err) {
	case "NOT_LEADER", "NO_LEADER", "STALE":
		return true
	case "":
		return output.CodeOf(output.FromRPC("", err, nil)) == output.CodeUnreachable
	}
	return false
}

func (a *app) printSnapshot(file string, info archive.Info) error {
	item := &coordinatorv1.SnapshotInfo{
		File: file, ClusterId: info.ClusterID, ClusterName: info.ClusterName, Index: info.Index, Term: info.Term, SavedAt: timestamppb.New(info.SavedAt),
		SavedBy: info.SavedBy, Version: info.Version, Counts: info.Counts, Size: uint64(max(0, info.Size)), Sha256: hex.EncodeToString(info.SHA256),
	}
	return a.printer().Print(output.Data{
		Kind: "SnapshotInfo", Items: []proto.Message{item}, Names: []string{"snapshot/" + filepath.Base(file)},
		Text: func(w io.Writer, _ bool) {
			for _, row := range [][2]string{
				{"file", file}, {"cluster", item.GetClusterName() + " (" + item.GetClusterId() + ")"},
				{"saved", info.SavedAt.UTC().Format(time.RFC3339) + " by " + item.GetSavedBy() + " " + item.GetVersion()},
				{"index", fmt.Sprintf("%d, term %d", item.GetIndex(), item.GetTerm())}, {"holds", countsText(item.GetCounts())},
				{"size", fmt.Sprintf("%d bytes", item.GetSize())}, {"sha256", item.GetSha256()},
			} {
				_, _ = fmt.Fprintf(w, "%-8s %s\n", row[0], output.Clean(row[1]))
			}
		},
	})
}

func countsText(counts map[string]uint64) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", kind, counts[kind]))
	}
	return strings.Join(parts, ", ")
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Check a saved snapshot and show what it holds", Args: exactly("FILE"),
		Long: "Inspect reads the file to its end, and proves with its SHA-256 that it is as it was saved. It needs no coordinator and no key.",
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := a.inspect(args[0])
			if err != nil {
				return err
			}
			return a.printSnapshot(args[0], info)
		},
	}
}

func (a *app) inspect(file string) (archive.Info, error) {
	f, err := os.Open(a.absolute(file))
	if err != nil {
		return archive.Info{}, output.Usage("give the name of a saved snapshot", "the snapshot cannot be read: %v", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := archive.Inspect(f)
	if err != nil {
		return info, &output.Error{What: file + " is of no use", Cause: err.Error(), Hint: "take another snapshot", Code: output.CodeUsage}
	}
	return info, nil
}

func (a *app) snapshotRestoreCommand() *cobra.Command {
	var name, reason string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Bring the cluster back to a saved snapshot", Args: exactly("FILE"),
		Long: `Restore puts stacks, releases, runs, secrets and procedures of the running cluster back to what they were when the snapshot was saved. Containers are
not touched: the next update brings them into line. Who belongs to the cluster stays as it is now. It is refused while runs go on, and for a snapshot of
another cluster. Runs that were active when it was saved wait for a human. Watchers start anew.`,
		Example: "  musterctl operator snapshot restore prod-2026-11-23.snapshot --cluster prod --reason 'the stacks were deleted'",
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := a.inspect(args[0])
			if err != nil {
				return err
			}
			if err := a.typeCluster(cmd.Context(), &name, info); err != nil {
				return err
			}
			cluster, err := a.cluster()
			if err != nil {
				return err
			}
			answer, err := a.restore(cmd.Context(), cluster, a.absolute(args[0]), name, reason)
			if err != nil {
				return a.fail("the snapshot was not restored", err, map[string]string{"CONFLICT": "musterctl run list --active"})
			}
			return a.printer().Print(output.Data{
				Kind: "Restore", Items: []proto.Message{answer}, Names: []string{"cluster/" + name},
				Text: func(w io.Writer, _ bool) {
					_, _ = fmt.Fprintf(w, "cluster/%s is back at index %d: %s\n", output.Clean(name), answer.GetSavedIndex(), output.Clean(countsText(answer.GetCounts())))
					for _, run := range answer.GetWaitingRuns() {
						_, _ = fmt.Fprintf(w, "run/%s was active when the snapshot was saved, and waits: musterctl run show %s\n", output.Clean(run), output.Clean(run))
					}
				},
			})
		},
	}
	cmd.Flags().StringVar(&name, "cluster", "", "name of the cluster that loses its present state; it is asked for if not given")
	cmd.Flags().StringVar(&reason, "reason", "", "why; it is kept in the log")
	return cmd
}

// typeCluster lets the person type the name of the cluster: a yes is given too quickly.
func (a *app) typeCluster(ctx context.Context, name *string, info archive.Info) error {
	if *name != "" {
		return nil
	}
	if !a.interactive() {
		return output.Usage("repeat the command with --cluster NAME", "restoring replaces the present state of the cluster, and there is nobody to ask")
	}
	_, _ = fmt.Fprintf(a.Stderr, "This replaces stacks, releases, runs, secrets and procedures by those of %s.\nType the name of the cluster to go on: ",
		info.SavedAt.UTC().Format(time.RFC3339))
	line, err := a.readLine(ctx, nil)
	if err != nil {
		return a.fail("nothing was changed", err, nil)
	}
	if *name = strings.TrimSpace(line); *name != info.ClusterName {
		return &output.Error{What: "declined: nothing was changed", Cause: "that is not the name of the cluster", Code: output.CodeDeclined}
	}
	return nil
}

func (a *app) restore(ctx context.Context, cluster coordinatorv1.ClusterServiceClient, file, name, reason string) (answer *coordinatorv1.RestoreSnapshotResponse, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	err = a.eachCoordinator(ctx, func(ctx context.Context) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		stream, err := cluster.RestoreSnapshot(ctx)
		if err != nil {
			return err
		}
		// An error of Send only says that the answer is there.
		err = stream.Send(&coordinatorv1.RestoreSnapshotRequest{ClusterName: name, Reason: reason})
		part := make([]byte, snapshotPart)
		for err == nil {
			n, readErr := f.Read(part)
			if errors.Is(readErr, io.EOF) {
				break
			}
			if readErr != nil {
				return readErr
			}
			err = stream.Send(&coordinatorv1.RestoreSnapshotRequest{Data: part[:n]})
		}
		answer, err = stream.CloseAndRecv()
		return err
	})
	return answer, err
}
