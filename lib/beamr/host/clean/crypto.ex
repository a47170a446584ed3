defmodule Beamr.Host.Clean.Crypto do
  @moduledoc """
  Clean's `crypto`: random bytes and SHA-256 as lowercase hex, and passwords.

  Passwords are hashed with PBKDF2-HMAC-SHA-256 and 16 random bytes of salt, written as
  `pbkdf2-sha256$iterations$salt$hash`; `iterations:` says how often (600,000 unless given, some
  tenths of a second). They are verified in constant time, by as many iterations as the hash
  says, up to ten million. `crypto_random_bytes` gives up to a mebibyte.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  @iterations 600_000
  @most_iterations 10_000_000
  @most_bytes 1_048_576
  @salt_bytes 16
  @hash_bytes 32

  @impl true
  def init(arg) do
    iterations = if Keyword.keyword?(arg), do: arg[:iterations] || @iterations, else: @iterations

    unless is_integer(iterations) and iterations in 1..@most_iterations do
      raise ArgumentError,
            ":iterations must be from 1 to #{@most_iterations}, given: #{inspect(iterations)}"
    end

    iterations
  end

  @wasm "_auth_hash_password (string) -> string"
  def hash_password(_wasm, iterations, password) do
    salt = :crypto.strong_rand_bytes(@salt_bytes)
    hash = hash(password, salt, iterations, @hash_bytes)
    Enum.join(["pbkdf2-sha256", iterations, Base.encode64(salt), Base.encode64(hash)], "$")
  end

  @wasm "_auth_verify_password (string, string) -> boolean"
  def verify_password(_wasm, _iterations, password, hashed) do
    with ["pbkdf2-sha256", iterations, salt, hash] <- String.split(hashed, "$"),
         {iterations, ""} when iterations in 1..@most_iterations <- Integer.parse(iterations),
         {:ok, salt} <- Base.decode64(salt),
         {:ok, hash} when byte_size(hash) == @hash_bytes <- Base.decode64(hash) do
      :crypto.hash_equals(hash(password, salt, iterations, @hash_bytes), hash)
    else
      _ -> false
    end
  end

  defp hash(password, salt, iterations, length) do
    :crypto.pbkdf2_hmac(:sha256, password, salt, iterations, length)
  end

  @wasm "crypto_random_bytes (i32) -> string"
  def random_bytes(_wasm, count) when count in 0..@most_bytes do
    count |> :crypto.strong_rand_bytes() |> Base.encode16(case: :lower)
  end

  def random_bytes(_wasm, _count), do: :error

  @wasm "crypto_sha256 (string) -> string"
  def sha256(_wasm, text), do: :sha256 |> :crypto.hash(text) |> Base.encode16(case: :lower)
end
