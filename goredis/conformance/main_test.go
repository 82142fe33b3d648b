package conformance

import (
	"os"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }
