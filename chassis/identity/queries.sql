-- name: principal_by_api_key
-- Primary key of api_key, then of principal.
SELECT k.secret_sha256, k.expires_at, p.name, p.administrator, p.roles, p.groups, p.feature_stores, p.actions
FROM identity.api_key k
JOIN identity.principal p ON p.id = k.principal_id
WHERE k.prefix = $1;

-- name: principal_by_access_key
-- Primary key of access_key, then of principal.
SELECT k.secret_encrypted, k.expires_at, p.name, p.administrator, p.roles, p.groups, p.feature_stores, p.actions
FROM identity.access_key k
JOIN identity.principal p ON p.id = k.principal_id
WHERE k.access_key_id = $1;

-- name: use_nonce
-- Primary key of nonce. No row comes back if the nonce was used and has not expired.
INSERT INTO identity.nonce AS n (access_key_id, nonce, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (access_key_id, nonce) DO UPDATE SET expires_at = excluded.expires_at WHERE n.expires_at < now()
RETURNING 1;

-- name: drop_expired_nonces
-- nonce_expiry. At most 1,000 at a time.
DELETE FROM identity.nonce
WHERE (access_key_id, nonce) IN (
    SELECT access_key_id, nonce FROM identity.nonce WHERE expires_at < now() ORDER BY expires_at LIMIT 1000
);

-- name: insert_principal
INSERT INTO identity.principal (name, administrator, roles, groups, feature_stores, actions)
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING name, administrator, roles, groups, feature_stores, actions, created_at;

-- name: list_principals
-- principal_name_key.
SELECT name, administrator, roles, groups, feature_stores, actions, created_at
FROM identity.principal ORDER BY name;

-- name: delete_principal
-- principal_name_key, api_key_principal, access_key_principal. What goes: the principal, with its keys.
DELETE FROM identity.principal p WHERE p.name = $1
RETURNING p.name, p.administrator, p.roles, p.groups, p.feature_stores, p.actions, p.created_at,
    ARRAY(SELECT k.prefix FROM identity.api_key k WHERE k.principal_id = p.id ORDER BY k.prefix) AS api_keys,
    ARRAY(SELECT k.access_key_id FROM identity.access_key k WHERE k.principal_id = p.id ORDER BY 1) AS access_keys;

-- name: insert_api_key
-- principal_name_key. No row comes back without that principal.
INSERT INTO identity.api_key (prefix, secret_sha256, principal_id, expires_at)
SELECT $1, $2, p.id, $4 FROM identity.principal p WHERE p.name = $3
RETURNING created_at;

-- name: list_api_keys
SELECT k.prefix, p.name AS principal, k.expires_at, k.created_at
FROM identity.api_key k JOIN identity.principal p ON p.id = k.principal_id
ORDER BY k.created_at DESC, k.prefix;

-- name: delete_api_key
-- Primary key of api_key.
DELETE FROM identity.api_key k WHERE k.prefix = $1
RETURNING (SELECT p.name FROM identity.principal p WHERE p.id = k.principal_id) AS principal, k.expires_at, k.created_at;

-- name: insert_access_key
-- principal_name_key. No row comes back without that principal.
INSERT INTO identity.access_key (access_key_id, secret_encrypted, principal_id, expires_at)
SELECT $1, $2, p.id, $4 FROM identity.principal p WHERE p.name = $3
RETURNING created_at;

-- name: list_access_keys
SELECT k.access_key_id, p.name AS principal, k.created_at, k.expires_at
FROM identity.access_key k JOIN identity.principal p ON p.id = k.principal_id
ORDER BY k.created_at DESC, k.access_key_id;

-- name: delete_access_key
-- Primary key of access_key.
DELETE FROM identity.access_key k WHERE k.access_key_id = $1
RETURNING (SELECT p.name FROM identity.principal p WHERE p.id = k.principal_id) AS principal, k.created_at;

-- name: retire_api_key
-- Primary keys of api_key and principal. The key expires after $2, unless it does so sooner.
UPDATE identity.api_key k SET expires_at = least(k.expires_at, now() + $2::interval)
FROM (SELECT prefix, expires_at FROM identity.api_key WHERE prefix = $1 FOR UPDATE) old, identity.principal p
WHERE k.prefix = old.prefix AND p.id = k.principal_id
RETURNING p.name AS principal, k.created_at, old.expires_at AS expired_at, k.expires_at;

-- name: retire_access_key
-- Primary keys of access_key and principal. The same.
UPDATE identity.access_key k SET expires_at = least(k.expires_at, now() + $2::interval)
FROM (SELECT access_key_id, expires_at FROM identity.access_key WHERE access_key_id = $1 FOR UPDATE) old,
    identity.principal p
WHERE k.access_key_id = old.access_key_id AND p.id = k.principal_id
RETURNING p.name AS principal, k.created_at, old.expires_at AS expired_at, k.expires_at;

-- name: sealed_access_keys
-- Primary key of access_key. Those after $1, at most $2.
SELECT access_key_id, secret_encrypted FROM identity.access_key WHERE access_key_id > $1 ORDER BY access_key_id LIMIT $2;

-- name: reseal_access_key
-- Primary key of access_key. Nothing if it has changed meanwhile.
UPDATE identity.access_key SET secret_encrypted = $3 WHERE access_key_id = $1 AND secret_encrypted = $2;
