defmodule Beamr.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Beamr.Telemetry.detect()
    children = [{Registry, keys: :unique, name: Beamr.Registry}]
    Supervisor.start_link(children, strategy: :one_for_one, name: Beamr.Supervisor)
  end
end
