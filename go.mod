module carrel.dev/carrel

go 1.26.0

// Packages of npm, some with Go files of their own.
ignore ./web/node_modules

require (
	connectrpc.com/connect v1.21.1 // gRPC, Connect and gRPC-Web from one handler (docs/decisions/0005)
	connectrpc.com/grpcreflect v1.3.1 // lets grpcurl look at the API
	connectrpc.com/vanguard v0.4.0 // REST from the HTTP rules; pinned, newer versions are not served everywhere
	github.com/cenkalti/backoff/v5 v5.0.3 // retries of the client
	github.com/cespare/xxhash/v2 v2.3.0 // the quick check of blocks as they are read; SHA-256 stands beside it
	github.com/coder/websocket v1.8.15 // terminals for browsers
	github.com/erofs/go-erofs v0.3.1 // writes EROFS without mkfs.erofs, deterministically
	github.com/goccy/go-yaml v1.19.2 // YAML with strict decoding and errors that show the place
	github.com/golang-jwt/jwt/v5 v5.3.1 // tickets
	github.com/go-zeromq/zmq4 v0.17.0 // tests: the ZeroMQ of a kernel that is played
	github.com/google/go-containerregistry v0.22.1 // OCI images from registries and disk
	github.com/google/nftables v0.3.0 // the firewall on the host end of a box, without nft(8)
	github.com/jackc/pgx/v5 v5.11.0 // PostgreSQL
	github.com/klauspost/compress v1.20.1 // zstd layers of OCI images
	github.com/pkg/sftp v1.13.12 // the SFTP server in a box
	github.com/pressly/goose/v3 v3.29.0 // migrations
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/rogpeppe/go-internal v1.16.0 // testscript, for the CLI
	github.com/spf13/cobra v1.10.2 // command lines
	github.com/stretchr/testify v1.12.1 // tests
	github.com/vishvananda/netlink v1.3.1 // network namespaces and links without ip(8)
	go.uber.org/goleak v1.3.0 // tests: no goroutine is left
	golang.org/x/crypto v0.58.0 // the SSH gateway
	golang.org/x/net v0.61.0
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
	golang.org/x/term v0.47.0 // raw terminals of the CLI
	google.golang.org/genproto/googleapis/api v0.0.0-20261005182115-fad411399dd8
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261005182115-fad411399dd8
	google.golang.org/grpc v1.85.0 // tests: a plain gRPC client
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/docker/cli v29.7.2+incompatible // indirect
	github.com/docker/docker-credential-helpers v0.9.3 // indirect
	github.com/fsnotify/fsnotify v1.9.0 // indirect
	github.com/go-zeromq/goczmq/v4 v4.2.2 // indirect
	github.com/google/go-cmp v0.7.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/kr/fs v0.1.0 // indirect
	github.com/mdlayher/netlink v1.7.3-0.20250113171957-fbb4dce95f42 // indirect
	github.com/mdlayher/socket v0.5.0 // indirect
	github.com/mfridman/interpolate v0.0.2 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/sethvargo/go-retry v0.5.0 // indirect
	github.com/sirupsen/logrus v1.9.4 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
	gotest.tools/v3 v3.5.2 // indirect
)
