//go:build !linux

package holdfast_test

import "errors"

func limitFileSize(int64) error { return errors.ErrUnsupported }
