package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	snapshotFormat  = 1
	recordSizeLimit = 64 << 20
)

// Snapshot freezes the state in constant time. The result is written while later commands are applied.
func (s *State) Snapshot() (io.WriterTo, error) {
	return &frozen{view: s.View()}, nil
}

type frozen struct{ view *View }

// record turns an object of a table into its record.
func record(object any) *raftv1.SnapshotRecord {
	switch o := object.(type) {
	case *raftv1.Meta:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Meta{Meta: o}}
	case *raftv1.Identity:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Identity{Identity: o}}
	case *raftv1.Token:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Token{Token: o}}
	case *coordinatorv1.Host:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Host{Host: o}}
	case *coordinatorv1.Stack:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Stack{Stack: o}}
	case *coordinatorv1.Release:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Release{Release: o}}
	case *coordinatorv1.Run:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Run{Run: o}}
	case *raftv1.PlanRecord:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Plan{Plan: o}}
	case *coordinatorv1.StepStatus:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Step{Step: o}}
	case *raftv1.Lock:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Lock{Lock: o}}
	case *raftv1.Secret:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Secret{Secret: o}}
	case *coordinatorv1.StoredProcedure:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Procedure{Procedure: o}}
	case *raftv1.Request:
		return &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Request{Request: o}}
	}
	panic(fmt.Sprintf("state: %T has no record", object))
}

// row returns the table of a record and its object; nil for a record that this program does not know.
func row(r *raftv1.SnapshotRecord) (string, proto.Message) {
	switch row := r.GetRow().(type) {
	case *raftv1.SnapshotRecord_Meta:
		return tableMeta, row.Meta
	case *raftv1.SnapshotRecord_Identity:
		return tableIdentity, row.Identity
	case *raftv1.SnapshotRecord_Token:
		return tableToken, row.Token
	case *raftv1.SnapshotRecord_Host:
		return tableHost, row.Host
	case *raftv1.SnapshotRecord_Stack:
		return tableStack, row.Stack
	case *raftv1.SnapshotRecord_Release:
		return tableRelease, row.Release
	case *raftv1.SnapshotRecord_Run:
		return tableRun, row.Run
	case *raftv1.SnapshotRecord_Plan:
		return tablePlan, row.Plan
	case *raftv1.SnapshotRecord_Step:
		return tableStep, row.Step
	case *raftv1.SnapshotRecord_Lock:
		return tableLock, row.Lock
	case *raftv1.SnapshotRecord_Secret:
		return tableSecret, row.Secret
	case *raftv1.SnapshotRecord_Procedure:
		return tableProcedure, row.Procedure
	case *raftv1.SnapshotRecord_Request:
		return tableRequest, row.Request
	}
	return "", nil
}

// snapshotTables in the order in which they are written.
func snapshotTables() []string {
	return []string{
		tableMeta, tableIdentity, tableToken, tableHost, tableStack, tableRelease, tableRun, tablePlan, tableStep, tableLock, tableSecret, tableProcedure, tableRequest,
	}
}

// WriteTo writes the header, a record for every object, and a trailer that proves that nothing is missing. Equal states give equal bytes.
func (f *frozen) WriteTo(w io.Writer) (int64, error) {
	out := &summing{w: w, sum: sha256.New()}
	options := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	header := &raftv1.SnapshotHeader{Format: snapshotFormat, ClusterId: f.view.Meta().GetClusterId(), Index: f.view.Index()}
	if _, err := options.MarshalTo(out, header); err != nil {
		return out.n, err
	}
	var records uint64
	for _, name := range snapshotTables() {
		it, err := f.view.txn.Get(name, indexID+"_prefix", "")
		if err != nil {
			return out.n, fmt.Errorf("list %s: %w", name, err)
		}
		for object := it.Next(); object != nil; object = it.Next() {
			if _, err := options.MarshalTo(out, record(object)); err != nil {
				return out.n, err
			}
			records++
		}
	}
	trailer := &raftv1.SnapshotTrailer{Records: records, Sha256: out.sum.Sum(nil)}
	_, err := options.MarshalTo(out, &raftv1.SnapshotRecord{Row: &raftv1.SnapshotRecord_Trailer{Trailer: trailer}})
	return out.n, err
}

// Restore replaces the state by a snapshot. The new tables are built and proved beside the old ones, which stay if anything is wrong.
func (s *State) Restore(r io.Reader) error {
	in := &summingReader{r: bufio.NewReaderSize(r, 1<<16), sum: sha256.New()}
	options := protodelim.UnmarshalOptions{MaxSize: recordSizeLimit}
	header := &raftv1.SnapshotHeader{}
	if err := options.UnmarshalFrom(in, header); err != nil {
		return fmt.Errorf("read the header of the snapshot: %w", err)
	}
	if header.GetFormat() != snapshotFormat {
		return fmt.Errorf("the snapshot has format %d; this program reads format %d only", header.GetFormat(), snapshotFormat)
	}
	db := newDB()
	if err := restoreRecords(db, in, options); err != nil {
		return err
	}
	s.mu.Lock()
	s.db = db
	s.index = header.GetIndex()
	s.events = newRing(eventCapacity)
	s.events.floor = header.GetIndex()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	return nil
}

func restoreRecords(db *memdb.MemDB, in *summingReader, options protodelim.UnmarshalOptions) error {
	txn := db.Txn(true)
	for records := uint64(0); ; records++ {
		sum := in.sum.Sum(nil)
		next := &raftv1.SnapshotRecord{}
		if err := options.UnmarshalFrom(in, next); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the snapshot is cut short after %d records: %w", records, err)
		}
		if trailer := next.GetTrailer(); trailer != nil {
			if trailer.GetRecords() != records || !bytes.Equal(trailer.GetSha256(), sum) {
				return fmt.Errorf("the snapshot is damaged: its trailer does not match its %d records", records)
			}
			txn.Commit()
			return nil
		}
		name, object := row(next)
		if object == nil {
			return fmt.Errorf("record %d of the snapshot is of a kind that this program does not know: run a version of it that does", records)
		}
		if err := txn.Insert(name, object); err != nil {
			return fmt.Errorf("restore a record of %s: %w", name, err)
		}
	}
}

type summing struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (s *summing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	s.n += int64(n)
	return n, err
}

// summingReader sums what was consumed, not what was buffered.
type summingReader struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (s *summingReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

func (s *summingReader) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.sum.Write([]byte{b})
	}
	return b, err
}
