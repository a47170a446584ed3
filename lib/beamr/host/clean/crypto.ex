defmodule Beamr.Host.Clean.Crypto do
  @moduledoc """
  Clean's `crypto`: random bytes and SHA-256 as lowercase hex, and passwords.

  Passwords are hashed with PBKDF2-HMAC-SHA-256 and 16 random bytes of salt, written as
  `pbkdf2-sha256-chain$iterations$salt$hash`; `iterations:` says how often (600,000 unless given,
  some tenths of a second). They are verified in constant time, by as many iterations as the hash
  says, up to ten million. OTP runs PBKDF2 on a normal scheduler to its end, so it is asked for
  500 iterations at a time, each with the result before it appended to the salt.
  `crypto_random_bytes` gives up to 65,536.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  @iterations 600_000
  @most_iterations 10_000_000
  @most_bytes 65_536
  @salt_bytes 16
  @hash_bytes 32
  @at_once 500
  @scheme "pbkdf2-sha256-chain"

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
    hash = hash(password, salt, iterations, "")
    Enum.join([@scheme, iterations, Base.encode64(salt), Base.encode64(hash)], "$")
  end

  @wasm "_auth_verify_password (string, string) -> boolean"
  def verify_password(_wasm, _iterations, password, hashed) do
    with [@scheme, iterations, salt, hash] <- String.split(hashed, "$"),
         {iterations, ""} when iterations in 1..@most_iterations <- Integer.parse(iterations),
         {:ok, salt} <- Base.decode64(salt),
         {:ok, hash} when byte_size(hash) == @hash_bytes <- Base.decode64(hash) do
      :crypto.hash_equals(hash(password, salt, iterations, ""), hash)
    else
      _ -> false
    end
  end

  defp hash(_password, _salt, 0, hash), do: hash

  defp hash(password, salt, iterations, before) do
    now = min(iterations, @at_once)
    hash = :crypto.pbkdf2_hmac(:sha256, password, salt <> before, now, @hash_bytes)
    # Natives count as no work: without this, others would wait until the last.
    :erlang.yield()
    hash(password, salt, iterations - now, hash)
  end

  @wasm "crypto_random_bytes (i32) -> string"
  def random_bytes(_wasm, count) when count in 0..@most_bytes do
    count |> :crypto.strong_rand_bytes() |> Base.encode16(case: :lower)
  end

  def random_bytes(_wasm, _count), do: :error

  @wasm "crypto_sha256 (string) -> string"
  def sha256(_wasm, text), do: :sha256 |> :crypto.hash(text) |> Base.encode16(case: :lower)
end
