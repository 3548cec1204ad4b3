-- Who may call, and with which keys. API keys are stored hashed; access key secrets are stored encrypted, because a
-- signature can only be checked with the secret itself.
CREATE TABLE identity.principal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL CONSTRAINT principal_name_key UNIQUE,
    administrator boolean NOT NULL DEFAULT false,
    roles text[] NOT NULL DEFAULT '{}',
    groups text[] NOT NULL DEFAULT '{}',
    feature_stores text[] NOT NULL DEFAULT '{}',
    actions text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT principal_name_length CHECK (length(name) BETWEEN 1 AND 128)
);

CREATE TABLE identity.api_key (
    prefix text PRIMARY KEY,
    secret_sha256 bytea NOT NULL,
    principal_id bigint NOT NULL REFERENCES identity.principal (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
CREATE INDEX api_key_principal ON identity.api_key (principal_id);

CREATE TABLE identity.access_key (
    access_key_id text PRIMARY KEY,
    secret_encrypted bytea NOT NULL,
    principal_id bigint NOT NULL REFERENCES identity.principal (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX access_key_principal ON identity.access_key (principal_id);

-- Nonces of signed requests, kept as long as their date would be accepted.
CREATE TABLE identity.nonce (
    access_key_id text NOT NULL,
    nonce text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (access_key_id, nonce)
);
CREATE INDEX nonce_expiry ON identity.nonce (expires_at);
